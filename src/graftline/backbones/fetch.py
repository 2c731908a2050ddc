"""Fetch weights into the weights directory, from a package or the hub, and check them by loading them once."""

import logging
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
from safetensors.torch import save_file

from graftline.backbones import catalog, hub
from graftline.backbones.loading import create_pretrained
from graftline.backbones.weights import WITHOUT_ANY, WeightsFile, from_package, published_license
from graftline.backbones.weights_store import LockedWeights, LockMismatchError, WeightsStore, full_name
from graftline.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchedWeights:
    """A network's weights in the weights directory.

    Attributes:
        path: the file.
        entry: what the lock file says of it.
        is_new: False if it was there already.
    """

    path: Path
    entry: LockedWeights
    is_new: bool


def fetch(name: str, store: WeightsStore) -> FetchedWeights:
    """Put a backbone's weights into the weights directory, unless they are there with the right hash.

    Args:
        name: a timm model's name; without a tag, its default one is meant.
        store: the directory, which is made if need be.

    Raises:
        UserError: unknown name, no weights to be had, or what was downloaded does not fit the network.
    """
    catalog.check(name)
    try:
        entry = store.find(name)
    except LockMismatchError as error:
        logger.warning(f"Replacing what is there: {str(error).partition(': fetch it again')[0]}.")
        entry = None
    path = store.path(name)
    if entry is not None:
        logger.info(f"{path} is there already, with the hash in {store.lock_file.name}; nothing to download.")
        return FetchedWeights(path, entry, is_new=False)
    source = _source(name)
    store.make()
    with TemporaryDirectory(prefix=".fetch-", dir=store.directory) as folder:
        temporary = Path(folder) / path.name
        _write(name, source, temporary)
        entry = store.add(name, temporary, _origin(name, source.location))
    return FetchedWeights(path, entry, is_new=True)


def _source(name: str) -> WeightsFile:
    """Find the weights in a package or the hub's cache, or download them."""
    if (packaged := from_package(name)) is not None:
        return packaged
    try:
        found = hub.find_local(name) or hub.download(name)
    except hub.NotPublishedError as error:
        raise UserError(f"There are no weights of '{full_name(name)}' to fetch, as {error}: {WITHOUT_ANY}.") from error
    except hub.UnavailableError as error:
        mirror = ", or name a mirror of the hub (HF_ENDPOINT=https://…)" if hub.has_repository(name) else ""
        raise UserError(
            f"Cannot fetch the weights of '{full_name(name)}', as {error}: run this on a machine with network{mirror}."
        ) from error
    return WeightsFile(found.path, "hub", found.exact_location)


def _write(name: str, source: WeightsFile, path: Path) -> None:
    """Write the weights as .safetensors, as they are if they are already.

    They are loaded first: what does not fit is to be found out here, not on the machine without network.
    """
    network = create_pretrained(name, source, {})
    if source.path.suffix == ".safetensors":
        shutil.copyfile(source.path, path)  # byte for byte: the hash is the hub's, the metadata stays
    else:
        tensors = {key: tensor.clone().contiguous() for key, tensor in network.state_dict().items()}
        save_file(tensors, path, metadata={"format": "pt"})


def _origin(name: str, source: str) -> dict[str, str]:
    architecture = full_name(name).partition(".")[0]
    date = datetime.now(UTC).date().isoformat()
    return {
        "license": published_license(name),
        "source": source,
        "architecture": architecture,
        "date": date,
        "timm": timm.__version__,
    }
