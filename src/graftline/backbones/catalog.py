"""List and check the names of backbones: all of timm's and our own, with and without the tag of their weights.

timm takes seconds to import. A process without it reads the names from a file in the user's cache, which belongs to
timm's version and our own networks.
"""

import contextlib
import json
import sys
from difflib import SequenceMatcher, get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from graftline.errors import UserError
from graftline.files import cache_directory, digest, sha256_file, write_json

NUM_SUGGESTIONS = 3
ZOO = Path(__file__).with_name("zoo")


class Catalog(NamedTuple):
    """All names, sorted, and the new names of those that timm has renamed: None where it has removed the network."""

    names: list[str]
    renamed: dict[str, str | None]


def names() -> list[str]:
    """Return all names, sorted: architectures (``resnet50``) and architectures with a tag (``resnet50.a1_in1k``).

    >>> {"resnet50", "resnet50.a1_in1k"} <= set(names())
    True
    """
    return catalog().names


def catalog() -> Catalog:
    """Return timm's catalog where timm is loaded, else the one that was kept, which is made if it is missing."""
    if "timm" in sys.modules:
        return _registered()
    try:
        return Catalog(*json.loads(_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return keep()


def keep() -> Catalog:
    """Write timm's catalog to the user's cache, if that can be written to, and return it."""
    registered = _registered()
    with contextlib.suppress(OSError):
        write_json(_file(), registered)
    return registered


def _registered() -> Catalog:
    import timm
    from timm.models import get_deprecated_models

    import graftline.backbones.zoo  # noqa: F401  # registers our own networks with timm
    from graftline.backbones.loading import STAGES

    known = {*timm.list_models(), *timm.list_models(include_tags=True)} - {STAGES}  # that is built around another
    return Catalog(sorted(known), get_deprecated_models())


def _file() -> Path:
    own = {file.name: sha256_file(file) for file in sorted(ZOO.glob("*.py"))}
    return cache_directory() / f"backbones-{version('timm')}-{digest(own)}.json"


def suggest(name: str) -> list[str]:
    """Return up to three names that may have been meant, the likeliest first.

    >>> suggest("efficientnet-bo")
    ['efficientnet_b0', 'efficientnet_b1', 'efficientnet_b2']
    >>> suggest("resnet50.a1")[0]
    'resnet50.a1_in1k'
    """
    known_names, all_renamed = catalog()
    if renamed := all_renamed.get(name):
        return [renamed]
    name = name.lower().replace("-", "_")
    architecture, _, _ = name.partition(".")
    known = [candidate for candidate in known_names if candidate.partition(".")[0] == architecture]
    if not known:  # a mistyped architecture: its tag says nothing
        name, known = architecture, [candidate for candidate in known_names if "." not in candidate]
    continued = sorted((candidate for candidate in known if candidate.startswith(name)), key=len)
    close = get_close_matches(name, known, n=20)  # many, since it breaks ties in favor of the last in the alphabet
    close.sort(key=lambda candidate: (-SequenceMatcher(None, candidate, name).ratio(), candidate))
    return list(dict.fromkeys(continued + close))[:NUM_SUGGESTIONS]


def check(name: str) -> None:
    """Make sure that there is a backbone called ``name``.

    Raises:
        UserError: there is none; names that are close are given.
    """
    if name in names():
        return
    meant = suggest(name)
    hint = f"did you mean {' or '.join(meant)}?" if meant else "take one of timm's (timm.list_models())."
    raise UserError(f"There is no backbone '{name}': {hint}")
