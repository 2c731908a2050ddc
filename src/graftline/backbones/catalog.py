"""List and check the names of backbones: all of timm's and our own, with and without the tag of their weights."""

from difflib import SequenceMatcher, get_close_matches

import timm
from timm.models import get_deprecated_models

import graftline.backbones.zoo  # noqa: F401  # registers our own networks with timm
from graftline.errors import UserError

NUM_SUGGESTIONS = 3


def names() -> list[str]:
    """Return all names, sorted: architectures (``resnet50``) and architectures with a tag (``resnet50.a1_in1k``).

    >>> {"resnet50", "resnet50.a1_in1k"} <= set(names())
    True
    """
    return sorted({*timm.list_models(), *timm.list_models(include_tags=True)})


def suggest(name: str) -> list[str]:
    """Return up to three names that may have been meant, the likeliest first.

    >>> suggest("efficientnet-bo")
    ['efficientnet_b0', 'efficientnet_b1', 'efficientnet_b2']
    >>> suggest("resnet50.a1")[0]
    'resnet50.a1_in1k'
    """
    if renamed := get_deprecated_models().get(name):
        return [renamed]
    name = name.lower().replace("-", "_")
    architecture, _, _ = name.partition(".")
    known = [candidate for candidate in names() if candidate.partition(".")[0] == architecture]
    if not known:  # a mistyped architecture: its tag says nothing
        name, known = architecture, [candidate for candidate in names() if "." not in candidate]
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
