"""The freeze rule that finds the depth by trials."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from graftline.backbones.layers import body_groups
from graftline.errors import UserError
from graftline.freezing.depth import HEAD_EPOCHS, frozen_at, head_plan, random_plan
from graftline.freezing.depth_search import DepthSearch
from graftline.freezing.evidence import FEWEST_IN_FOLDS, too_few_to_choose, trial_fits
from graftline.freezing.rule import FreezeContext, FreezeDecision, FreezeRule
from graftline.freezing.spare_time import with_spare_time

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured(FreezeRule):
    """Tries the head alone and what more than that brings, and goes on from what is best (Hydra target).

    Each trial begins with the network's own weights and a new head, on the same part of the training images. If none
    has a log loss on the validation split that is likely (nine in ten, image by image) and notably (a twentieth) lower
    than that of the head alone, the head alone is the answer; else the training goes on from the best one. Where the
    best two cannot be told apart, the better half goes on first with twice the images, each from its own weights, as
    long as all trials take no longer than the training that follows.

    Attributes:
        depths: shares of the layer groups below the head that are frozen in the trials, 0 to 1; 0 is the whole network.
        trial_images: of the training split that a trial uses in its first round, or ten times as many as there are
            classes, or a tenth of the split if one of these is more; each further round doubles them. Ten of each class
            are among them, or all that it has.
        final_depth: share that is frozen in the training that follows, where more than the head pays; None: that of the
            best trial.
    """

    needs_trials: ClassVar[bool] = True

    depths: Sequence[float] = (0.75, 0.5, 0.25, 0.0)
    trial_images: int = 1_000
    final_depth: float | None = None

    def __post_init__(self) -> None:
        shares = [*self.depths, *([] if self.final_depth is None else [self.final_depth])]
        if not self.depths or not all(0 <= share < 1 for share in shares):  # also catches NaN
            raise UserError("Measured.depths and Measured.final_depth need shares from 0 to below 1, such as [0.5, 0].")
        if self.trial_images < 1:
            raise UserError(f"Measured.trial_images is {self.trial_images}, it must be at least 1.")
        super().__post_init__()

    def decide(self, context: FreezeContext) -> FreezeDecision:
        """Try boundaries and choose one; a user's own number of epochs is that of the training that follows."""
        network = context.network
        if not context.pretrained:
            return FreezeDecision((context.finalize(random_plan(network)),), context.epochs)
        if (few := too_few_to_choose(context.validation_counts)) is None:
            return self._search(context).decide()
        images = context.num_images + sum(context.validation_counts)
        if context.try_in_folds is None or images < FEWEST_IN_FOLDS:
            return FreezeDecision((context.finalize(head_plan(network).because(few)),), context.epochs)
        if trial_fits(images) > 1:
            logger.info(f"Each training and validation image is judged by fits without it, as {few}.")
        else:
            logger.info(
                f"A third of the training and validation images is judged by fits without it, as {few}. "
                "Ingest.parent='none' with Split.existing=False draws a new split."
            )
        return self._search(context, in_folds=True).decide()

    def _search(self, context: FreezeContext, *, in_folds: bool = False) -> DepthSearch:
        num_groups = len(body_groups(context.network))
        final = None if self.final_depth is None else frozen_at(self.final_depth, num_groups)
        return DepthSearch(context, self.boundaries(num_groups), self.trial_images, final, in_folds=in_folds)

    def change_epochs(self, decision: FreezeDecision, context: FreezeContext) -> FreezeDecision:
        """Return an earlier decision for the context's number of epochs; nothing is tried again."""
        if not context.pretrained:
            return self.decide(context)
        *tried, last = decision.plans
        measurement, done = decision.measurement, 0
        if tried and measurement is not None and last.frozen_groups == measurement.chosen.frozen_groups:
            done = measurement.chosen.trained_images
        own = HEAD_EPOCHS if last.only_head else context.epochs_after(done)
        last = replace(last, epochs=own if context.epochs is None else context.epochs)
        return replace(decision, plans=(*tried, last), epochs=context.epochs)

    def use_spare_time(self, decision: FreezeDecision, context: FreezeContext) -> FreezeDecision:
        """Add a phase that trains as deep as the rule may, where the head alone is the answer and leaves the time."""
        share = min(self.depths) if self.final_depth is None else self.final_depth
        return with_spare_time(decision, context, frozen_at(share, len(body_groups(context.network))))

    def boundaries(self, num_groups: int) -> list[int]:
        """Return how many layer groups are frozen in each trial, the most first.

        >>> Measured().boundaries(8), Measured(depths=(0.9, 0.5)).boundaries(2)
        ([6, 4, 2, 0], [1])
        """
        return sorted({frozen_at(share, num_groups) for share in self.depths}, reverse=True)
