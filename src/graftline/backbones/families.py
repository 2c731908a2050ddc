"""Families of networks of which one was tried: docs/families.md, which benchmarks/families.py writes."""

from timm.models import is_model_in_modules

# timm's modules, and those of our own networks, whose smallest network became a bundle.
TRIED = frozenset(["alexnet", "googlenet", "lenet5", "nin"])


def is_tried(name: str) -> bool:
    """Tell whether a network of the same family is known to become a bundle.

    >>> is_tried("lenet5"), is_tried("resnet50.a1_in1k")
    (True, True)
    """
    return bool(is_model_in_modules(name.partition(".")[0], TRIED))
