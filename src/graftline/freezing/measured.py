"""The freeze rule that finds the depth: both ends and some boundaries between them, by successive halving."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from graftline.backbones.layers import HEAD, body_groups, group_names
from graftline.errors import DivergenceError, TooLittleMemoryError, UserError
from graftline.freezing.depth import (
    FORWARD_PER_STEP,
    HEAD_EPOCHS,
    PASSES_PER_STEP,
    deep_plan,
    head_plan,
    random_plan,
    share_of,
    trial_epochs,
)
from graftline.freezing.evidence import (
    FEWEST_IN_FOLDS,
    MOST_JUDGED,
    TRIAL_FOLDS,
    most_validated,
    too_few_to_choose,
    trial_fits,
)
from graftline.freezing.measurement import (
    BoundaryResult,
    BoundaryTrial,
    DepthMeasurement,
    Difference,
    describe_boundary,
)
from graftline.freezing.plan import FreezePlan
from graftline.freezing.rule import FreezeContext, FreezeDecision, FreezeRule, TryBoundary
from graftline.freezing.spare_time import with_spare_time

logger = logging.getLogger(__name__)

LEAST_TRIAL = 500  # training images, where time is short: after fewer steps a new head has not found its place yet
# At 144 classes, half of the network showed nothing after a trial of 5 images of each, and nearly all after one of 10.
IMAGES_OF_CLASS = 10
LOOK_SECONDS = 40.0  # of the first trial beside the head's, if it is of more than half of the network
TRIALS_SHARE = 0.3  # of the time, where there is a limit
LARGE_PART = 0.1  # of a large training split, for a trial: it takes about as long as the frozen pass over all of it


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
            return _Search(self, context).decide()
        images = context.num_images + sum(context.validation_counts)
        if context.try_in_folds is None or images < FEWEST_IN_FOLDS:
            return FreezeDecision((context.finalize(_because(head_plan(network), few)),), context.epochs)
        if trial_fits(images) > 1:
            logger.info(f"Each training and validation image is judged by fits without it, as {few}.")
        else:
            logger.info(
                f"A third of the training and validation images is judged by fits without it, as {few}. "
                "Ingest.parent='none' with Split.existing=False draws a new split."
            )
        return _Search(self, context, in_folds=True).decide()

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


def frozen_at(share: float, num_groups: int) -> int:
    """Return a share of the layer groups as a number that leaves at least one to train."""
    return min(share_of(num_groups, share), max(0, num_groups - 1))


class _Search:
    """One search of ``Measured``: the trials, and what is decided from them."""

    def __init__(self, rule: Measured, context: FreezeContext, *, in_folds: bool = False) -> None:
        attempt = context.try_in_folds if in_folds else context.try_boundary
        if attempt is None:
            raise ValueError("Measured decides by trials: give it a FreezeContext with try_boundary.")
        self._rule, self._context, self._network = rule, context, context.network
        self._try: TryBoundary = attempt
        self._in_folds = in_folds
        self._num_groups = len(body_groups(context.network))
        self._head_plan = head_plan(context.network)  # of its usual epochs, as a deeper trial has its own
        self._trials: list[BoundaryTrial] = []
        validation = sum(context.validation_counts)
        images = context.num_images + validation
        self._fits, judged = (trial_fits(images), images / TRIAL_FOLDS) if in_folds else (1, validation)
        self._judged = min(MOST_JUDGED, judged)  # images, by each fit of a trial
        num_classes = len(context.validation_counts)
        self._of_all_classes = IMAGES_OF_CLASS * num_classes
        enough, large_part = max(rule.trial_images, self._of_all_classes), int(LARGE_PART * context.num_images)
        self._wanted = min(context.num_images, max(enough, large_part))  # training images of a trial
        self._epochs = trial_epochs(self._wanted, enough, context.step_images, num_classes)

    def decide(self) -> FreezeDecision:
        """Try, halve, and choose."""
        images = self._trial_images()
        if images is None:
            own = self._context.finalize(head_plan(self._network))  # it is compared with nothing
            stopped = "the time does not allow for a trial"
            if self._is_live:  # its training is cut to the time, which a trial is not
                return FreezeDecision((_because(own, stopped),), self._context.epochs)
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
        frozen = self._rule.boundaries(self._num_groups)
        rounds = 2 if len(frozen) > 1 else 1  # those that go on take as long again, if all of them pay
        affordable = self._affordable(frozen * rounds)
        if affordable >= self._wanted:
            return self._wanted
        return int(affordable) if affordable >= max(LEAST_TRIAL, self._of_all_classes) else None

    def _affordable(self, frozen_groups: Sequence[int]) -> float:
        """Return on how many images the head's trial and several others may be, for the time that trials have left.

        A head needs one pass over all images afterwards, which is left for it. Each trial also passes the images that
        it is judged by, and judges each of its epochs by them.
        """
        left = self._steps_left()
        if math.isinf(left):
            return math.inf
        affordable = left - self._steps_after_trials
        trials = [(self._num_groups, HEAD_EPOCHS), *((frozen, self._epochs) for frozen in frozen_groups)]
        passes = sum(self._pass_share(frozen, epochs) for frozen, epochs in trials)
        steps = sum(epochs * self._trained_share(frozen) for frozen, epochs in trials)
        return (affordable / self._fits - self._judged * (passes + steps / FORWARD_PER_STEP)) / (passes + steps)

    @cached_property
    def _steps_after_trials(self) -> float:
        """How many images can be passed forward and backward once all trials are over; settled before the first."""
        left = self._steps_left()
        return left - TRIALS_SHARE * (left - self._context.pass_steps)

    def _steps_left(self) -> float:
        """Return how many images can be passed forward and backward in the time that is left."""
        left, image_seconds = self._context.seconds_left, self._context.image_seconds
        return math.inf if left is None or image_seconds is None else left() / image_seconds()

    def _pass_share(self, frozen_groups: int, epochs: int) -> float:
        """Return how long an image takes in what is frozen, once or in each epoch, where to train the whole takes 1."""
        if not self._is_live:
            return self._context.pass_share
        frozen_share = 1 - self._trained_share(frozen_groups)
        return self._context.decoding_share + epochs * frozen_share / FORWARD_PER_STEP

    @cached_property
    def _is_live(self) -> bool:
        """Whether nothing is cached of a trial; asked for only where there is a limit."""
        return self._context.head_is_live is not None and self._context.head_is_live()

    def _first_round(self, head: BoundaryTrial, images: int) -> list[BoundaryTrial]:
        """Return the trials that came to their end: first of the other end, then of some boundaries between the two.

        The loss is taken for a valley over the depth. Where the head is the better end, the way leads down from it for
        as long as that pays; else what lies between is halved each time.
        """
        boundaries = self._rule.boundaries(self._num_groups)
        end = boundaries.index(self._other_end(boundaries, images))
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

    def _other_end(self, boundaries: Sequence[int], images: int) -> int:
        """Return the deepest boundary whose trial does not take too long, but not one above the middle of the network.

        The last quarter may show nothing where half of the network shows much: faults of few pixels are lost below it.
        """
        image_seconds = self._context.image_seconds
        if image_seconds is None:
            return boundaries[-1]
        try:
            each = self._fits * images * image_seconds()
        except TooLittleMemoryError:  # on a GPU that has no room for the whole network
            each = math.inf
        quick = [one for one in boundaries if each * self._passes(one, self._epochs) <= LOOK_SECONDS]
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
        if self._affordable([best.plan.frozen_groups]) < more:
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
        taken = self._fits * sum(number * self._passes(frozen, self._epochs) for frozen, number in trials)
        finals = [self._final_groups(trial) for trial in further]
        return taken <= self._context.num_images * min(
            self._passes(frozen, self._context.deep_epochs) for frozen in finals
        )

    def _passes(self, frozen_groups: int, epochs: int) -> float:
        """Return how long an image takes in all epochs, where the whole network takes 1, forward and backward."""
        return 1 / PASSES_PER_STEP + epochs * self._trained_share(frozen_groups)

    def _trained_share(self, frozen_groups: int) -> float:
        """Return how long an image takes once in what is trained, where the whole network takes 1."""
        return 1 - frozen_groups / self._num_groups

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
        share, tried = self._rule.final_depth, best.plan.frozen_groups
        return tried if share is None else min(tried, frozen_at(share, self._num_groups))

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
            plan = _because(chosen.plan if final is None else final, reason)
            return FreezeDecision((plan,), self._context.epochs, measurement)
        plans = [trial.plan for trial in chain]
        plans[-1] = _because(plans[-1], reason)
        tried = tuple(trial.folder for trial in chain)
        context, finals = self._context, [] if final is None else [final]
        most = min(MOST_JUDGED, most_validated(context.num_images))  # or the training is judged by other images
        on_all = chosen.images >= context.num_images and sum(context.validation_counts) <= most
        return FreezeDecision((*plans, *finals), context.epochs, measurement, tried, on_all)


def _because(plan: FreezePlan, reason: str) -> FreezePlan:
    return replace(plan, reason=f"{reason}: {plan.reason}")


def _better(best: BoundaryTrial, trial: BoundaryTrial | None) -> BoundaryTrial:
    """Return a trial that is as good as the best one so far, else that one; None has diverged."""
    return best if trial is None or trial.loss > best.loss else trial
