"""Families of networks of which one was tried: docs/families.md, which benchmarks/families.py writes."""

from timm.models import is_model_in_modules

OWN = frozenset({"alexnet", "googlenet", "lenet5", "nin"})  # in `graftline.backbones.zoo`, which has tests of its own
# timm's modules whose smallest network became a bundle.
TRIED = OWN | {
    "beit",
    "byoanet",
    "byobnet",
    "cait",
    "coat",
    "convit",
    "convmixer",
    "convnext",
    "cpubone",
    "crossvit",
    "csatv2",
    "cspnet",
    "cspnext",
    "davit",
    "densenet",
    "efficientnet",
    "fastvit",
    "levit",
    "mobilenetv3",
    "regnet",
    "resnet",
    "starnet",
    "swin_transformer",
    "vgg",
    "vision_transformer",
    "volo",
}


def is_own(network_name: str) -> bool:
    """Tell whether timm can build a network only once it knows those of graftline's own.

    >>> is_own("lenet5"), is_own("resnet50.a1_in1k"), is_own("resnet50.a1_in1k+stages")
    (True, False, True)
    """
    return "+" in network_name or bool(is_model_in_modules(network_name.partition(".")[0], OWN))


def is_tried(name: str) -> bool:
    """Tell whether a network of the same family is known to become a bundle.

    >>> is_tried("lenet5"), is_tried("resnet50.a1_in1k")
    (True, True)
    """
    return bool(is_model_in_modules(name.partition(".")[0], TRIED))
