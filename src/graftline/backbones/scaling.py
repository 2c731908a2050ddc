"""Scale EfficientNet: to a given phi, or to the largest one within a budget of multiply-adds.

The method is that of Tan and Le 2019 (arXiv 1905.11946), section 3.3; ``zoo/efficientnet.py`` has the equation.
"""

import logging
import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch

from graftline.backbones.backbone import Backbone
from graftline.backbones.cost import count
from graftline.backbones.loading import create
from graftline.backbones.zoo.efficientnet import PHI_LIMITS, check_phi, depth, resolution, width
from graftline.console import console
from graftline.errors import UserError

logger = logging.getLogger(__name__)

STEPS_PER_PHI = 100  # phi is searched in hundredths
NUM_CLASSES = 1000  # the size of the head that is counted, as in the paper: 1.3 million multiply-adds at phi = 0


@dataclass(frozen=True)
class ScaledBackbone(Backbone):
    """An EfficientNet whose size is chosen by one number (Hydra target of conf/backbone/efficientnet.yaml).

    Attributes:
        phi: 0 is B0, 7 about B7. None, without a budget: 0.
        budget_gmacs: 10⁹ multiply-adds per image; phi becomes the largest, in hundredths, that costs no more
            with a head of 1,000 classes, as networks are compared; each further thousand costs 0.0013 at phi = 0.
    """

    phi: float | None = None
    budget_gmacs: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if "phi" in self.options:
            raise UserError("ScaledBackbone.options.phi is an argument of its own: give ScaledBackbone.phi.")
        if self.phi is not None and self.budget_gmacs is not None:
            raise UserError(
                "ScaledBackbone.phi and ScaledBackbone.budget_gmacs both say how large the network is: give one."
            )
        if self.budget_gmacs is not None and not (math.isfinite(self.budget_gmacs) and self.budget_gmacs > 0):
            raise UserError(f"ScaledBackbone.budget_gmacs is {self.budget_gmacs:g}, but must be finite and above 0.")
        if self.phi is not None:
            check_phi(self.phi)

    @cached_property
    def chosen_phi(self) -> float:
        """The network's phi, searched for when it is first asked for if there is a budget.

        Raises:
            UserError: the smallest network exceeds the budget.
        """
        if self.budget_gmacs is None:
            return 0.0 if self.phi is None else self.phi
        with console.status(f"Looking for the largest network within {self.budget_gmacs:g} GMACs"):
            phi = self._largest_within(self.budget_gmacs)
        logger.info(
            f"Budget {self.budget_gmacs:g} GMACs: phi {phi:.2f} (width {width(phi):.2f}, depth {depth(phi):.2f}, "
            f"{self.given_size or resolution(phi)} px) costs {self._count_gmacs(phi):.3g} GMACs "
            f"with {NUM_CLASSES:,} classes."
        )
        if phi == PHI_LIMITS[1]:
            logger.warning(
                f"That is the largest network there is (phi {phi:g}): ScaledBackbone.budget_gmacs would pay for more."
            )
        return phi

    def arguments(self) -> dict[str, Any]:
        """Return what timm needs to build the network again, phi included."""
        return {**super().arguments(), "phi": self.chosen_phi}

    def _for_side(self, side: int) -> Self:  # noqa: ARG002 - the parent's signature
        """Return the backbone as it is: its image size belongs to its phi."""
        return self

    def _largest_within(self, budget: float) -> float:
        """Return the largest phi that costs ``budget`` or less, by bisection: the cost never falls as phi grows."""
        first, last = (int(limit * STEPS_PER_PHI) for limit in PHI_LIMITS)
        steps = range(first, last + 1)
        num_affordable = bisect_right(steps, budget, key=lambda step: self._count_gmacs(step / STEPS_PER_PHI))
        if num_affordable == 0:
            smallest = self._count_gmacs(PHI_LIMITS[0])
            raise UserError(
                f"ScaledBackbone.budget_gmacs is {budget:g}, but the smallest network (phi {PHI_LIMITS[0]:g}) "
                f"costs {smallest:.2g} GMACs: give more."
            )
        return steps[num_affordable - 1] / STEPS_PER_PHI

    def _count_gmacs(self, phi: float) -> float:
        """Return the measured 10⁹ multiply-adds for one image."""
        size, channels = self.given_size or resolution(phi), self.channels or 3
        with torch.device("meta"):  # shapes only
            network = create(self.built_as, NUM_CLASSES, {**super().arguments(), "phi": phi})
        return count(network, (size, size), channels).macs / 1e9
