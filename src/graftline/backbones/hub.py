"""Find the weights that timm knows on this machine, or download them, without a long wait for a host that is away."""

import contextlib
import logging
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils.logging import get_verbosity, set_verbosity
from huggingface_hub.utils.tqdm import disable_progress_bars, tqdm
from rich.status import Status
from timm.models import get_pretrained_cfg

from graftline.console import console
from graftline.errors import first_line

logger = logging.getLogger(__name__)

# The hub client retries for 46 s before it gives up; a host that is there accepts a connection within this time, in s.
PROBE_SECONDS = 3.0
# timm's repositories hold one of these, safetensors preferred (timm/models/_hub.py, load_state_dict_from_hf).
FILE_NAMES = ("model.safetensors", "pytorch_model.bin")


class WeightsLocation(NamedTuple):
    """A downloaded weights file.

    Attributes:
        path: on this machine.
        location: where it was downloaded from: REPOSITORY/FILE or a URL.
        commit: of the repository, if it was one.
    """

    path: Path
    location: str
    commit: str | None = None

    @property
    def exact_location(self) -> str:
        """The location with the commit in it: REPOSITORY@COMMIT/FILE."""
        if self.commit is None:
            return self.location
        owner, repository, file = self.location.split("/", maxsplit=2)
        return f"{owner}/{repository}@{self.commit}/{file}"


class UnavailableError(Exception):
    """There are no weights to download, or the host is away; the message says which, as a part of a sentence."""


class NotPublishedError(UnavailableError):
    """timm knows no address of the weights, so that no network would help."""


class _Repository(NamedTuple):
    name: str
    revision: str | None
    files: tuple[str, ...]  # in the order of preference


def find_local(name: str) -> WeightsLocation | None:
    """Return the weights of a timm model if an earlier download left them here. Uses no network."""
    if (repository := _repository(name)) is not None:
        for file in repository.files:
            path = huggingface_hub.try_to_load_from_cache(repository.name, file, revision=repository.revision)
            if isinstance(path, str):
                return _in_cache(repository, file, path)
    if (url := _url(name)) is not None and _path_of(url).is_file():
        return WeightsLocation(_path_of(url), url)
    return None


def download(name: str) -> WeightsLocation:
    """Download the weights of a timm model into the cache that ``find_local`` reads.

    Raises:
        NotPublishedError: timm knows none.
        UnavailableError: the host does not answer within ``PROBE_SECONDS``, or the download fails.
    """
    repository, url = _repository(name), _url(name)
    address = constants.ENDPOINT if repository is not None else url
    if address is None:
        raise NotPublishedError("timm knows no place to download them from")
    host = urlsplit(address).hostname
    if constants.is_offline_mode() or not is_reachable(address):
        raise UnavailableError(f"they are not on this machine and {host} does not answer")
    logger.info(f"Downloading the weights of {name} from {host}")
    try:
        with console.status(f"{host} → {name}") as status, _quiet_client():
            return _fetch_from_hub(repository, status) if repository is not None else _fetch_from_url(address)
    except Exception as error:  # the client's own errors, those of the HTTP library below it, and the system's
        reason = first_line(error)
        raise UnavailableError(f"the download from {host} failed ({reason})") from error


def has_repository(name: str) -> bool:
    """Tell whether the weights of a timm model are on the hub, of which there are mirrors; else they have a URL."""
    return _repository(name) is not None


def is_reachable(url: str) -> bool:
    """Return whether the host of ``url``, or the proxy before it, accepts a connection within ``PROBE_SECONDS``."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is not None and not urllib.request.proxy_bypass(host):
        parts = urlsplit(proxy)
    address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    accepted = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=PROBE_SECONDS):
            accepted.set()

    # in a thread, since looking up a name has no time limit of its own
    probe = threading.Thread(target=connect, daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return accepted.is_set()


def _repository(name: str) -> _Repository | None:
    config = get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return None
    repository, _, revision = config.hf_hub_id.partition("@")
    files = (config.hf_hub_filename,) if config.hf_hub_filename else FILE_NAMES
    return _Repository(repository, revision or None, files)


def _url(name: str) -> str | None:
    config = get_pretrained_cfg(name)
    # custom_load: arrays of another framework, which only the network itself can read; the hub has them converted
    if config is None or config.custom_load or not isinstance(config.url, str):
        return None
    return config.url or None


def _path_of(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name


def _fetch_from_hub(repository: _Repository, status: Status) -> WeightsLocation:
    for file in repository.files[:-1]:
        with contextlib.suppress(EntryNotFoundError):
            return _fetch_file(repository, file, status)
    return _fetch_file(repository, repository.files[-1], status)


def _fetch_file(repository: _Repository, file: str, status: Status) -> WeightsLocation:
    path = huggingface_hub.hf_hub_download(
        repository.name, file, revision=repository.revision, tqdm_class=_counter(status)
    )
    return _in_cache(repository, file, path)


def _in_cache(repository: _Repository, file: str, path: str) -> WeightsLocation:
    # the client keeps it as …/snapshots/COMMIT/FILE
    commit = Path(path.removesuffix(file)).name
    return WeightsLocation(Path(path), f"{repository.name}/{file}", commit)


def _counter(status: Status) -> type[tqdm]:
    """Return what the hub's client takes for its own bar, but which counts megabytes in a line of ours."""
    text = status.status

    class Counter(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            status.update(f"{text}: {self.n / 1e6:,.0f} of {(self.total or 0) / 1e6:,.0f} MB")
            return None

        def update_transfer(self, n: float | None = 1) -> None:
            """Leave out the second count, of compressed bytes, that the client keeps for some repositories."""

    return Counter


def _fetch_from_url(url: str) -> WeightsLocation:
    path = _path_of(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(url, str(path), progress=False)
    return WeightsLocation(path, url)


@contextlib.contextmanager
def _quiet_client() -> Iterator[None]:
    """Keep the hub client's bars and advice off the terminal while the block runs."""
    verbosity = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        with disable_progress_bars():
            yield
    finally:
        set_verbosity(verbosity)
