"""The freeze rule that tries boundaries from the head down with short fits, until going deeper no longer pays."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from graftline.backbones.layers import HEAD, group_names
from graftline.errors import UserError
from graftline.freezing.measurement import BoundaryResult, BoundaryTrial, DepthMeasurement, Difference, in_words
from graftline.freezing.plan import FreezePlan, depth_in_words, plan_from_depth
from graftline.freezing.rule import FreezeContext, FreezeDecision, FreezeRule, check_recommendation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured(FreezeRule):
    """Tries one boundary after another from the head down, and takes the last that paid (Hydra target).

    A deeper boundary pays if its log loss on the validation split is lower than that of the best one so far, with a
    paired 95 % interval that excludes 0. After ``patience`` boundaries in a row that did not pay, the search ends.

    Attributes:
        epochs: of each short fit.
        patience: boundaries in a row that do not pay before the search ends.
        head_epochs: recommended for the whole fit where only the head is trained.
        deeper_epochs: recommended for the whole fit where more is trained.
        head_learning_rate: of short and whole fit where only the head is trained.
        stage_learning_rate: where the last layer group is trained too.
        whole_learning_rate: where nothing is frozen; between these two the rate falls geometrically.
        random_epochs: recommended where the weights are random: nothing is measured, and nothing frozen.
        random_learning_rate: likewise.
        max_seconds: no boundary is begun that would end later, if it takes as long as the last one; None: no limit.
    """

    needs_trials: ClassVar[bool] = True

    epochs: int = 8
    patience: int = 2
    head_epochs: int = 30
    deeper_epochs: int = 12
    head_learning_rate: float = 0.01
    stage_learning_rate: float = 0.001
    whole_learning_rate: float = 0.0003
    random_epochs: int = 60
    random_learning_rate: float = 0.001
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for epochs, learning_rate in (
            ("head_epochs", "head_learning_rate"),
            ("deeper_epochs", "stage_learning_rate"),
            ("epochs", "whole_learning_rate"),
            ("random_epochs", "random_learning_rate"),
        ):
            check_recommendation(
                getattr(self, epochs), getattr(self, learning_rate), f"Measured.{epochs}", f"Measured.{learning_rate}"
            )
        if self.patience < 1:
            raise UserError(f"Measured.patience is {self.patience}, it must be at least 1.")
        if self.max_seconds is not None and not self.max_seconds > 0:  # also catches NaN
            raise UserError(f"Measured.max_seconds is {self.max_seconds}, it must be above 0.")

    def decide(self, context: FreezeContext) -> FreezeDecision:
        """Try boundaries and choose one; a user's own number of epochs bounds that of the short fits too."""
        network = context.network
        if not context.pretrained:
            plan = self._plan(network, 0, "the weights are random, there is nothing to keep and nothing to measure")
            plan = replace(plan, epochs=self.random_epochs, learning_rate=self.random_learning_rate)
            return FreezeDecision((context.finalize(plan),), context.epochs)
        trials, chosen, stopped = self._search(context)
        rows = tuple(BoundaryResult.of(trial, chosen) for trial in trials)
        measurement = DepthMeasurement(rows, chosen.plan.frozen_groups, len(chosen.losses), stopped)
        plan = self._plan(network, measurement.frozen_groups, _reason(rows, measurement.chosen))
        return FreezeDecision((context.finalize(plan),), context.epochs, measurement)

    def change_epochs(self, decision: FreezeDecision, context: FreezeContext) -> FreezeDecision:
        """Return an earlier decision for the context's number of epochs; nothing is tried again."""
        if decision.measurement is None:
            return self.decide(context)
        network, frozen_groups = context.network, decision.measurement.frozen_groups
        plan = replace(decision.plans[0], epochs=self._plan(network, frozen_groups, "").epochs)
        return FreezeDecision((context.finalize(plan),), context.epochs, decision.measurement)

    def learning_rate(self, frozen_groups: int, num_groups: int) -> float:
        """Return the learning rate for a boundary.

        Examples:
            >>> rule = Measured(head_learning_rate=0.1, stage_learning_rate=0.01, whole_learning_rate=0.0001)
            >>> [round(rule.learning_rate(frozen_groups, 3), 6) for frozen_groups in (3, 2, 1, 0)]
            [0.1, 0.01, 0.001, 0.0001]
        """
        if frozen_groups == num_groups:
            return self.head_learning_rate
        share = (num_groups - 1 - frozen_groups) / (num_groups - 1) if num_groups > 1 else 1.0
        return float(self.stage_learning_rate * (self.whole_learning_rate / self.stage_learning_rate) ** share)

    def _search(self, context: FreezeContext) -> tuple[list[BoundaryTrial], BoundaryTrial, str]:
        """Return the trials from the head down, the one that is chosen, and why there are no more."""
        if context.try_boundary is None:
            raise ValueError("Measured decides by trials: give it a FreezeContext with try_boundary.")
        epochs = self.epochs if context.epochs is None else min(self.epochs, context.epochs)
        logger.info(
            f"Measuring how much of the network to train: {epochs} epochs at each boundary, from the head down."
        )
        trials, unpaid, start = list[BoundaryTrial](), 0, time.perf_counter()
        boundaries = [*group_names(context.network), HEAD]
        for frozen_groups in range(len(boundaries) - 1, -1, -1):
            plan = self._plan(context.network, frozen_groups, f"tried: {boundaries[frozen_groups]}")
            trial = context.try_boundary(replace(plan, epochs=epochs))
            best = trials[-1 - unpaid] if trials else trial
            difference = Difference.of(trial.losses, best.losses)
            logger.info(_line(trial, best, difference))
            trials.append(trial)
            unpaid = 0 if trial is best or difference.is_below_zero else unpaid + 1
            if stopped := self._stopped(trial, unpaid, time.perf_counter() - start):
                break
        return trials, trials[-1 - unpaid], stopped

    def _plan(self, network: nn.Module, frozen_groups: int, why: str) -> FreezePlan:
        num_groups = len(group_names(network))
        return plan_from_depth(
            network,
            frozen_groups,
            f"{why}: {depth_in_words(network, frozen_groups)}",
            epochs=self.head_epochs if frozen_groups == num_groups else self.deeper_epochs,
            learning_rate=self.learning_rate(frozen_groups, num_groups),
        )

    def _stopped(self, trial: BoundaryTrial, unpaid: int, seconds: float) -> str:
        """Return why the search ends here; empty if it does not."""
        if unpaid == self.patience:
            return f"{unpaid} in a row did not pay" if unpaid > 1 else "the last one did not pay"
        if trial.plan.frozen_groups == 0:
            return "nothing is left to unfreeze"
        if self.max_seconds is not None and seconds + trial.seconds > self.max_seconds:
            return f"the next one would not end within the {self.max_seconds:g} s that are allowed"
        return ""


def _reason(rows: Sequence[BoundaryResult], chosen: BoundaryResult) -> str:
    """Return what was measured in words: the chosen boundary, and against it the head alone and the deeper ones."""
    others = [row for row in rows if row.frozen_groups < chosen.frozen_groups or row is rows[0] is not chosen]
    own = f"measured, validation log loss {chosen.log_loss:.3f} with {in_words(chosen.boundary)}"
    return ", ".join([own, *(f"{row.more_log_loss.text()} with {in_words(row.boundary)}" for row in others)])


def _line(trial: BoundaryTrial, best: BoundaryTrial, difference: Difference) -> str:
    """Return what is said when a trial is over."""
    against = "" if trial is best else f", {difference.text()} against {in_words(best.boundary)}"
    how = f"{trial.pass_seconds:.1f} s frozen pass" if trial.cached else "live"
    return (
        f"  {in_words(trial.boundary)}: {trial.trained_parameters:,} parameters, accuracy {trial.hits.mean():.3f}, "
        f"log loss {trial.losses.mean():.3f}{against}; {how}, {trial.fit_seconds:.1f} s fit"
    )
