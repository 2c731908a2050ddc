"""Freeze rules: from the data and the network to a freeze plan.

The more labelled images there are, the fewer layers are frozen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn
from typing_extensions import TypedDict  # pydantic checks only this one before Python 3.12

from graftline.backbones.layers import body_groups
from graftline.errors import UserError
from graftline.freezing.plan import FreezePlan, plan_from_depth


class Rule(Protocol):
    """A freeze rule."""

    def plan(self, network: nn.Module, images_per_class: float) -> FreezePlan:
        """Decide for ``network`` (a timm network) and the number of training images per class, on average."""
        ...


@dataclass(frozen=True)
class AllButHead:
    """Only the new head is trained."""

    def plan(self, network: nn.Module, images_per_class: float) -> FreezePlan:  # noqa: ARG002 - the protocol's
        """Freeze every layer group below the head."""
        groups = len(body_groups(network))
        return plan_from_depth(network, groups, f"all {groups} layer groups below the head are frozen")


@dataclass(frozen=True)
class Nothing:
    """The whole network is trained."""

    def plan(self, network: nn.Module, images_per_class: float) -> FreezePlan:  # noqa: ARG002 - the protocol's
        """Freeze nothing."""
        return plan_from_depth(network, 0, "nothing is frozen")


class Row(TypedDict):
    """One row of the table of ``Auto``."""

    images_per_class: int
    frozen: float


@dataclass(frozen=True)
class Auto:
    """Looks the share of frozen layer groups up in a table, by the number of training images per class.

    Attributes:
        table: rows of ``images_per_class`` (from this many on) and ``frozen`` (share of the layer groups, 0 to 1).

    Raises:
        UserError: the table does not start at 0 images, is not ascending, has a share outside 0 to 1, or freezes more
            where there are more images.
    """

    table: Sequence[Row]

    def __post_init__(self) -> None:
        thresholds = [row["images_per_class"] for row in self.table]
        shares = [row["frozen"] for row in self.table]
        if thresholds[:1] != [0] or sorted(set(thresholds)) != thresholds:
            raise UserError("freeze.table must start at images_per_class: 0 and ascend from row to row.")
        if sorted(shares, reverse=True) != shares or not all(0 <= share <= 1 for share in shares):
            raise UserError("freeze.table must give shares between 1 and 0 that do not grow with the number of images.")

    def plan(self, network: nn.Module, images_per_class: float) -> FreezePlan:
        """Freeze the share of the layer groups that the table gives, rounded to whole groups."""
        share = next(row["frozen"] for row in reversed(self.table) if images_per_class >= row["images_per_class"])
        groups = len(body_groups(network))
        frozen = round(share * groups)
        reason = f"{images_per_class:.0f} images per class: {frozen} of {groups} layer groups below the head are frozen"
        return plan_from_depth(network, frozen, reason)


def refuse_frozen_noise(plan: FreezePlan, *, pretrained: bool) -> None:
    """Refuse to freeze layers that know nothing.

    Raises:
        UserError: layers are frozen but the network has random weights.
    """
    if plan.frozen_groups > 0 and not pretrained:
        raise UserError(
            f"The frozen layers would be random ({plan.reason}, and the backbone has no pretrained weights): "
            "use freeze=none, or give the backbone weights."
        )
