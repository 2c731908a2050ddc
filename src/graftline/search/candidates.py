"""What a search chooses from: networks whose weights are on this machine, at image sizes that are worth a try."""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import timm
import torch
from torch import nn

from graftline.backbones import hub
from graftline.backbones.backbone import Backbone
from graftline.backbones.cost import count
from graftline.backbones.weights import PACKAGED, from_package
from graftline.backbones.weights_store import WeightsStore, full_name
from graftline.errors import UserError, first_line
from graftline.files import digest

logger = logging.getLogger(__name__)

STEP = 16  # px; sizes are multiples of it, which halve often enough, and fit the patches of most transformers
# Sides relative to a network's own, with half, a quarter and an eighth of its multiply-adds.
SMALLER = (0.5**0.5, 0.5, 0.125**0.5)
LEAST_SIDE = 64  # px; below, the last maps of a usual network are two pixels wide or less
# Networks classify better at a somewhat larger size than they were trained at (Touvron et al. 2019, arXiv 1906.06423).
LARGER = 1.29


# Settings of a backbone that make it no other candidate: its name and size are told, and weights may lie anywhere.
SAME_ANYWAY = ("name", "image_size", "weights_dir")

Measure = Callable[[nn.Module, tuple[int, int], int], float]  # network, (H, W) in px, channels → seconds for an image


@dataclass(frozen=True)
class Candidate:
    """A network at an image size.

    Attributes:
        backbone: with its image size.
        side: of the square images, in px.
        macs: multiply-adds per image.
        changes: in how many of the two it differs from the plain answer, network and size.
        variant: what tells it from others of its network and size, if there are any.
        seconds: that an image takes in the frozen pass, where that was measured.
    """

    backbone: Backbone
    side: int
    macs: float
    changes: int
    variant: str = ""
    seconds: float | None = None

    @property
    def network(self) -> str:
        """Name of the network, without the tag of its weights where it has the default ones."""
        name, _, tag = self.backbone.name.partition(".")
        return name if not tag or full_name(name) == self.backbone.name else self.backbone.name

    @property
    def name(self) -> str:
        """What it is called in tables and runs."""
        return f"{self.network} {self.side} px{self.variant}"

    @cached_property
    def key(self) -> str:
        """Name for files: that of the network, its size, and a digest of all that makes it what it is."""
        settings = {key: value for key, value in asdict(self.backbone).items() if key not in SAME_ANYWAY}
        return f"{self.network}-{self.side}px-{digest({**settings, 'kind': type(self.backbone).__name__})[:8]}"


def find_backbones(template: Backbone) -> list[Backbone]:
    """Return the networks whose weights are on this machine; nothing is downloaded.

    Args:
        template: the network of a training without a search. It gives what they have in common: channels, crop,
            dropout, the weights directory.

    Returns:
        Those with weights in a package, the weights directory or the hub's cache, each once, by name; the template
        itself where it is among them.
    """
    if template.file is not None:
        return [template]
    sources: dict[str, Callable[[], Iterable[str]]] = {
        "packaged": lambda: [name for name in PACKAGED if from_package(name) is not None],
        "directory": lambda: list(WeightsStore(template.weights_dir).entries()),
        "hub": lambda: [name for name in timm.list_pretrained() if hub.find_local(name) is not None],
    }
    found = {
        full_name(name) for source, names in sources.items() if template.weights in ("auto", source) for name in names()
    }
    own = full_name(template.name)
    others = [replace(template, name=name, options={}) for name in sorted(found - {own})]
    return [template, *others] if own in found else others


def list_candidates(
    backbones: Sequence[Backbone], plain: str, shorter_side: float, measure: Measure | None = None
) -> list[Candidate]:
    """Return the candidates, the plain answer first, then those that differ least from it, of these the cheapest first.

    Args:
        backbones: the networks; one that has an image size is a candidate at that size only.
        plain: name of the one among them that would be trained without a search.
        shorter_side: of a usual image of the data set, in px.
        measure: times a network at its own size; None: the multiply-adds will do, as on a CPU.

    Raises:
        UserError: not one of the networks can be built.
    """
    found: dict[str, Candidate] = {}
    errors: list[UserError] = []
    for backbone in backbones:
        is_plain = full_name(backbone.name) == full_name(plain)
        try:
            sizes = _sizes(backbone, shorter_side, measure, is_plain=is_plain)
        except UserError as error:
            logger.warning(f"{backbone.name} is left out: {first_line(error)}.")
            errors.append(error)
            continue
        for one in sizes:
            found.setdefault(one.key, one)  # what is named twice is one candidate
    if errors and not found:
        raise errors[0]
    return sorted(_told_apart([*found.values()]), key=lambda candidate: (candidate.changes, candidate.macs))


def too_large(backbone: Backbone, side: int) -> UserError:
    """Return the refusal of a network whose frozen pass takes more memory than a GPU has, at a side in px."""
    return UserError(
        f"The frozen pass of {backbone.name} does not fit the GPU's memory at {side} px: choose a smaller "
        "Backbone.image_size."
    )


def _told_apart(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Give those that share network and size the settings in which they differ, for their names."""
    told = []
    for one in candidates:
        own = asdict(one.backbone)
        others = [asdict(other.backbone) for other in candidates if other.name == one.name and other is not one]
        differing = [
            f"{key}={value}"
            for key, value in own.items()
            if key not in SAME_ANYWAY and any(other.get(key) != value for other in others)
        ]
        told.append(replace(one, variant=", " + " ".join(differing)) if differing else one)
    return told


def _sizes(backbone: Backbone, shorter_side: float, measure: Measure | None, *, is_plain: bool) -> list[Candidate]:
    """Return a network at its own size and at the others that it takes."""
    if backbone.image_size == "auto":  # the search finds out
        backbone = replace(backbone, image_size=None)
    preprocessing = backbone.preprocessing()
    own = min(preprocessing.image_size)
    graft = replace(backbone, weights="none", file=None).build(2)
    macs = count(graft.network, preprocessing.image_size, preprocessing.channels, backbone.name).macs
    seconds = None
    if measure is not None:
        with suppress(torch.OutOfMemoryError):  # kept as a cause, it would keep what lies on the GPU
            seconds = measure(graft.network, preprocessing.image_size, preprocessing.channels)
        if seconds is None:
            raise too_large(backbone, own)
    sides = [own] if backbone.image_size is not None else [own, *other_sides(own, shorter_side)]
    found = []
    for side in sides:
        sized = backbone if side == own else replace(backbone, image_size=side)
        try:
            sized.check()
        except UserError:
            if side == own:
                raise
            continue  # a transformer whose patches or windows would leave something over
        changes = (0 if is_plain else 1) + (0 if side == own else 1)
        share = (side / own) ** 2  # of the multiply-adds at its own size
        timed = None if seconds is None else seconds * share
        found.append(Candidate(sized, side, macs * share, changes, seconds=timed))
    return found


def other_sides(own: int, shorter_side: float) -> list[int]:
    """Return image sizes that are worth a try beside a network's own.

    Smaller ones cost half, a quarter and an eighth; the last is for images that are themselves not larger, as
    enlarging them adds no detail. A larger one is for images that have more detail than the network's own size shows.

    Args:
        own: side that the network was trained with, in px.
        shorter_side: of a usual image of the data set, in px.

    >>> other_sides(224, shorter_side=600), other_sides(224, shorter_side=28)
    ([160, 112, 288], [160, 112, 80])
    """
    smaller = [STEP * round(own * factor / STEP) for factor in SMALLER]
    if shorter_side > own * SMALLER[-1]:
        smaller = smaller[:-1]
    larger = [STEP * round(own * LARGER / STEP)] if shorter_side > own else []
    return [side for side in dict.fromkeys([*smaller, *larger]) if side >= LEAST_SIDE and side != own]
