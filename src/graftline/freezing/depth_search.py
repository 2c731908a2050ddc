"""The search for the depth by trials: both ends and some boundaries between them, by successive halving."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from graftline.backbones.layers import HEAD, body_groups, group_names
from graftline.errors import DivergenceError, TooLittleMemoryError
from graftline.freezing.depth import deep_plan, head_plan, trial_epochs
from graftline.freezing.evidence import MOST_JUDGED, TRIAL_FOLDS, most_validated, trial_fits
from graftline.freezing.measurement import (
    BoundaryResult,
    BoundaryTrial,
    DepthMeasurement,
    Difference,
    describe_boundary,
)
from graftline.freezing.plan import FreezePlan
from graftline.freezing.rule import FreezeContext, FreezeDecision, TryBoundary
from graftline.freezing.trial_costs import TrialCosts

logger = logging.getLogger(__name__)

LEAST_TRIAL = 500  # training images, where time is short: after fewer steps a new head has not found its place yet
# At 144 classes, half of the network showed nothing after a trial of 5 images of each, and nearly all after one of 10.
IMAGES_OF_CLASS = 10
LOOK_SECONDS = 40.0  # of the first trial beside the head's, if it is of more than half of the network
LARGE_PART = 0.1  # of a large training split, for a trial: it takes about as long as the frozen pass over all of it


class DepthSearch:
    """One search for the depth: the trials, and what is decided from them.

    Args:
        context: of the training, with what makes the trials.
        boundaries: how many layer groups may be frozen in a trial, the most first.
        trial_images: training images of a trial in its first round, more where there are very many of them or of
            classes.
        final_groups: how many layer groups are frozen at most in the training that follows, where more than the head
            pays; None: as many as in the best trial.
        in_folds: each training and validation image is judged by fits without it.
    """

    def __init__(
        self,
        context: FreezeContext,
        boundaries: list[int],
        trial_images: int,
        final_groups: int | None,
        *,
        in_folds: bool,
    ) -> None:
        attempt = context.try_in_folds if in_folds else context.try_boundary
        if attempt is None:
            raise ValueError("Measured decides by trials: give it a FreezeContext with try_boundary.")
        self._context, self._network, self._boundaries = context, context.network, boundaries
        self._deepest_final = final_groups
        self._try: TryBoundary = attempt
        self._in_folds = in_folds
        self._num_groups = len(body_groups(context.network))
        self._head_plan = head_plan(context.network)  # of its usual epochs, as a deeper trial has its own
        self._trials: list[BoundaryTrial] = []
        num_classes = len(context.validation_counts)
        self._of_all_classes = IMAGES_OF_CLASS * num_classes
        enough, large_part = max(trial_images, self._of_all_classes), int(LARGE_PART * context.num_images)
        self._wanted = min(context.num_images, max(enough, large_part))  # training images of a trial
        self._epochs = trial_epochs(self._wanted, enough, context.step_images, num_classes)
        validation = sum(context.validation_counts)
        images = context.num_images + validation
        fits, judged = (trial_fits(images), images / TRIAL_FOLDS) if in_folds else (1, validation)
        self._costs = TrialCosts(context, self._epochs, fits, min(MOST_JUDGED, judged))

    def decide(self) -> FreezeDecision:
        """Try, halve, and choose."""
        images = self._trial_images()
        if images is None:
            own = self._context.finalize(head_plan(self._network))  # it is compared with nothing
            stopped = "the time does not allow for a trial"
            if self._costs.is_live:  # its training is cut to the time, which a trial is not
                return FreezeDecision((own.because(stopped),), self._context.epochs)
            head = self._try_head(self._context.num_images, own)
            return self._leave_at_head(head, self._context.num_images, stopped)
        if images < self._context.num_images:
            logger.info(f"Depths are tried on {images:,} of the {self._context.num_images:,} training images.")
        head = self._try_head(images, self._head_plan)
        trials = self._first_round(head, images)
        paying = [trial for trial in trials if trial.pays(head)]
        if not paying and (again := self._try_again(trials, head, images)) is not None:
            head, images, paying = again
        if not paying:
            return self._leave_at_head(head, images, "more than the head did not pay")
        best = self._halve(sorted(paying, key=lambda trial: trial.loss), images)
        tried = "the trial" if len(self._trials) == 2 else "the best trial"
        return self._decision(best, self._final_plan(best), f"{tried} {'pays' if self._in_folds else 'goes on'}")

    def _try_head(self, images: int, plan: FreezePlan) -> BoundaryTrial:
        """Fit the head alone on so many training images."""
        part = images if images < self._context.num_images else None
        head = self._try(plan, None, part)
        self._trials.append(head)
        logger.info(f"  {head.sentence}")
        return head

    def _trial_images(self) -> int | None:
        """Return how many training images a trial uses: fewer where the time is short, None where it is too short."""
        rounds = 2 if len(self._boundaries) > 1 else 1  # those that go on take as long again, if all of them pay
        affordable = self._costs.affordable(self._boundaries * rounds)
        if affordable >= self._wanted:
            return self._wanted
        return int(affordable) if affordable >= max(LEAST_TRIAL, self._of_all_classes) else None

    def _first_round(self, head: BoundaryTrial, images: int) -> list[BoundaryTrial]:
        """Return the trials that came to their end: first of the other end, then of some boundaries between the two.

        The loss is taken for a valley over the depth. Where the head is the better end, the way leads down from it for
        as long as that pays; else what lies between is halved each time.
        """
        boundaries = self._boundaries
        end = boundaries.index(self._other_end(images))
        nearer, deeper = boundaries[:end], boundaries[end + 1 :]
        before, far = len(self._trials), self._attempt(boundaries[end], None, images)
        if far is None or far.loss > head.loss:
            self._walk_down(nearer, head, images)
        elif deeper:
            *between, deepest = deeper
            self._halve_between(between, _better(far, self._attempt(deepest, None, images)), images)
        else:
            self._halve_between(nearer, far, images)
        return self._trials[before:]

    def _other_end(self, images: int) -> int:
        """Return the deepest boundary whose trial does not take too long, but not one above the middle of the network.

        The last quarter may show nothing where half of the network shows much: faults of few pixels are lost below it.
        """
        boundaries, image_seconds = self._boundaries, self._context.image_seconds
        if image_seconds is None:
            return boundaries[-1]
        try:
            each = self._costs.fits * images * image_seconds()
        except TooLittleMemoryError:  # on a GPU that has no room for the whole network
            each = math.inf
        quick = [one for one in boundaries if each * self._costs.passes(one, self._epochs) <= LOOK_SECONDS]
        half = [one for one in boundaries if 2 * one <= self._num_groups]
        return min([*quick[-1:], half[0] if half else boundaries[-1]])

    def _walk_down(self, boundaries: Sequence[int], best: BoundaryTrial, images: int) -> None:
        """Try one boundary after the other, from the head down, for as long as that brings anything."""
        for frozen in boundaries:
            trial = self._attempt(frozen, None, images)
            if trial is None or trial.loss > best.loss:
                return
            best = trial

    def _halve_between(self, boundaries: Sequence[int], best: BoundaryTrial, images: int) -> None:
        """Try boundaries that lie between two ends, of which one is the best so far."""
        while boundaries:
            middle = (len(boundaries) - 1) // 2
            trial = self._attempt(boundaries[middle], None, images)
            is_deeper_best = best.plan.frozen_groups < boundaries[middle]
            if _better(best, trial) is best and is_deeper_best:
                boundaries = boundaries[middle + 1 :]
            else:
                best, boundaries = _better(best, trial), boundaries[:middle]

    def _try_again(
        self, trials: Sequence[BoundaryTrial], head: BoundaryTrial, images: int
    ) -> tuple[BoundaryTrial, int, list[BoundaryTrial]] | None:
        """Let the best trial go on with twice the images where it is as good as the head and may be notably better.

        The head has learned all that it can by then, the trial has only begun.

        Returns:
            The head fitted to those images, how many they are, and the trial if it pays now; None where nothing was
            tried, as it would not tell more or there is no time for it.
        """
        best = min(trials, key=lambda trial: trial.loss, default=None)
        if best is None or not best.may_pay(head):
            return None
        more = min(2 * images, self._context.num_images)
        if self._costs.affordable([best.plan.frozen_groups]) < more:
            return None
        logger.info(f"It is not settled yet: {describe_boundary(best.boundary)} goes on with {more:,} images.")
        head = self._try_head(more, self._head_plan) if more > images else head
        again = self._attempt(best.plan.frozen_groups, best, more)
        return head, more, [again] if again is not None and again.pays(head) else []

    def _halve(self, trials: Sequence[BoundaryTrial], images: int) -> BoundaryTrial:
        """Return the best trial, after further rounds of the better half with twice the images of the one before.

        There is none where the best is better for certain, or where all trials together would take longer than the
        training that follows.
        """
        while len(kept := trials[: len(trials) // 2 + len(trials) % 2]) > 1:
            images = min(2 * images, self._context.num_images)
            if Difference.of(kept[0].losses, kept[1].losses).is_below_zero or not self._may_take(kept, images):
                break
            further = [trial for one in kept if (trial := self._attempt(one.plan.frozen_groups, one, images))]
            trials = sorted(further or kept, key=lambda trial: trial.loss)
        return trials[0]

    def _may_take(self, further: Sequence[BoundaryTrial], images: int) -> bool:
        """Tell whether trials take no longer than the quickest of the trainings that they may lead to."""
        done = [(trial.plan.frozen_groups, trial.images) for trial in self._trials if not trial.plan.only_head]
        trials = done + [(trial.plan.frozen_groups, images) for trial in further]
        taken = self._costs.fits * sum(number * self._costs.passes(frozen, self._epochs) for frozen, number in trials)
        finals = [self._final_groups(trial) for trial in further]
        return taken <= self._context.num_images * min(
            self._costs.passes(frozen, self._context.deep_epochs) for frozen in finals
        )

    def _attempt(self, frozen_groups: int, start: BoundaryTrial | None, images: int) -> BoundaryTrial | None:
        boundary = [*group_names(self._network), HEAD][frozen_groups]
        plan = deep_plan(self._network, frozen_groups, f"tried {describe_boundary(boundary)}", self._epochs)
        try:
            trial = self._try(plan, start, images)
        except (DivergenceError, TooLittleMemoryError) as error:
            logger.info(f"  {describe_boundary(boundary)} is left out. {error}")
            return None
        self._trials.append(trial)
        head = next(one for one in reversed(self._trials) if one.plan.only_head)
        logger.info(f"  {trial.sentence}, {Difference.of(trial.losses, head.losses).text()} against the head alone")
        return trial

    def _final_plan(self, best: BoundaryTrial) -> FreezePlan:
        """Return the plan of the training that goes on from the best trial."""
        frozen = self._final_groups(best)
        done = best.trained_images if frozen == best.plan.frozen_groups and not self._in_folds else 0
        plan = deep_plan(self._network, frozen, "it pays", self._context.epochs_after(done))
        return self._context.finalize(plan)

    def _final_groups(self, best: BoundaryTrial) -> int:
        """Return how many layer groups are frozen in the training that goes on from a trial."""
        tried, deepest = best.plan.frozen_groups, self._deepest_final
        return tried if deepest is None else min(tried, deepest)

    def _leave_at_head(self, head: BoundaryTrial, images: int, stopped: str) -> FreezeDecision:
        """Return the decision for the head alone, which is the trial's if that had all images and the user's epochs."""
        decision = self._decision(head, None, stopped)
        plan = self._context.finalize(decision.plans[-1])
        context, as_planned = self._context, plan == decision.plans[-1]
        # a training with a limit is judged by a part of many validation images, as the trial was
        as_judged = context.seconds_left is not None or sum(context.validation_counts) <= MOST_JUDGED
        is_trained = images >= context.num_images and as_planned and as_judged
        return replace(decision, plans=(plan,), tried=decision.tried if is_trained else ())

    def _decision(self, chosen: BoundaryTrial, final: FreezePlan | None, stopped: str) -> FreezeDecision:
        """Return the decision for what was chosen; fits without a part of the images are no phase of the training."""
        rows = tuple(BoundaryResult.of(trial, chosen) for trial in self._trials)
        measurement = DepthMeasurement(
            rows, self._trials.index(chosen), len(chosen.losses), stopped, in_folds=self._in_folds
        )
        reason, chain = measurement.sentence, chosen.chain()
        if self._in_folds:
            plan = (chosen.plan if final is None else final).because(reason)
            return FreezeDecision((plan,), self._context.epochs, measurement)
        plans = [trial.plan for trial in chain]
        plans[-1] = plans[-1].because(reason)
        tried = tuple(trial.folder for trial in chain)
        context, finals = self._context, [] if final is None else [final]
        most = min(MOST_JUDGED, most_validated(context.num_images))  # or the training is judged by other images
        on_all = chosen.images >= context.num_images and sum(context.validation_counts) <= most
        return FreezeDecision((*plans, *finals), context.epochs, measurement, tried, on_all)


def _better(best: BoundaryTrial, trial: BoundaryTrial | None) -> BoundaryTrial:
    """Return a trial that is as good as the best one so far, else that one; None has diverged."""
    return best if trial is None or trial.loss > best.loss else trial
