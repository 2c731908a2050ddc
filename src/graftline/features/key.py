"""What an activation depends on beside the content of its image: the keys of the activation cache."""

from dataclasses import asdict
from importlib.metadata import version as version_of
from typing import Any

from graftline.augment.policy import Policy
from graftline.augment.preprocess import Preprocessing
from graftline.data.decoding import PLAIN, Decoding
from graftline.features.cut import Cut
from graftline.features.segment import FORMAT
from graftline.files import digest
from graftline.freezing.check import hash_of


def trunk_key(
    parts: Cut,
    preprocessing: Preprocessing,
    architecture: str,
    arguments: dict[str, Any],
    boundary: str,
    decoding: Decoding = PLAIN,
) -> dict[str, Any]:
    """Return all that the activations of plain images depend on; an exported trunk depends on nothing else.

    graftline's own version is not among it, or each release would compute everything again: where a release makes
    other activations of the same image, `FORMAT` is raised.

    Args:
        parts: the network, cut.
        preprocessing: of the images.
        architecture: timm's name of the network.
        arguments: that it was built with.
        boundary: where it was cut, for a person.
        decoding: how image files become pixels.
    """
    settings = {"decoding": identity} if (identity := decoding.identity()) else {}
    return {
        "format": FORMAT,
        "network": [architecture, arguments],
        "boundary": boundary,
        "trunk": digest(parts.code),
        "weights": digest({name: hash_of(tensor) for name, tensor in parts.trunk.state_dict().items()}),
        "versions": {package: version_of(package) for package in ("timm", "pillow")},
        "preprocessing": asdict(preprocessing),
        **settings,
    }


def view_key(policy: Policy, seed: int, view: int) -> dict[str, Any]:
    """Return what the activations of an augmented view depend on, beside the trunk.

    Args:
        policy: what may happen to an image.
        seed: of what does.
        view: its number, from 0.
    """
    return {
        "view": view,
        "crop": repr(policy.crop),
        "transforms": [[name, repr(t)] for name, t in policy.transforms.items()],  # their order matters
        "seed": seed,
        "albumentations": version_of("albumentations"),
    }
