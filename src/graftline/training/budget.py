"""A training with a limit of time: its last fit is cut to what is left, and its learning rate falls by the clock."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import pytorch_lightning as pl

from graftline.bundle.reference import MOST_IMAGES as MOST_REFERRED
from graftline.errors import TooLittleTimeError, UserError
from graftline.execution import Execution
from graftline.freezing.depth import FORWARD_PER_STEP, MOST_DEEP_EPOCHS, PASSES_PER_STEP
from graftline.freezing.evidence import most_validated
from graftline.freezing.plan import FreezePlan
from graftline.training.forecast import reduced_jpeg_side
from graftline.training.image_seconds import decoding_seconds, pass_seconds, seconds_per_image
from graftline.training.setup import TrainingSetup
from graftline.training.source_decision import head_is_live
from graftline.training.trainer import MakeTrainer, own_epochs

ROUNDS = 8  # validations at most within the time: one that is half too long or too short changes it by a sixteenth
LEAST_ROUNDS = 2
MOST_VALIDATED = 2_000  # validation images of a training with a time limit, each class in proportion
OVERHEAD_SECONDS = 15.0  # of start, export, figures and tracking
# Per test image and class, for intervals, figures and predictions.parquet: 9 s of a core for 10,000 of 1,000 classes.
SCORING_SECONDS = 1e-6
MOST_CALIBRATED = 2_000  # validation images that a bundle classifies for its calibration
VALIDATION_SHARE = 0.25  # of the time that validations may take


def cut_to(
    plan: FreezePlan,
    seconds: float,
    images: tuple[int, int],
    image_seconds: float,
    most: int,
    decoding: float = 0.0,
    to_decode: int | None = None,
    beside: bool = False,
) -> FreezePlan:
    """Return a plan whose fit takes so many seconds, in up to ``ROUNDS`` epochs of equal length, or in whole epochs.

    Args:
        plan: of the fit.
        seconds: it may take, validation included.
        images: of the training and of the validation split.
        image_seconds: how long an image takes to train what the plan trains.
        most: how often each training image may be seen.
        decoding: seconds that an image takes to be decoded.
        to_decode: how many images are decoded, once each; None: all of them each time that they are seen.
        beside: whether workers decode while the network computes, as they do for a GPU.

    >>> plan = FreezePlan(frozenset(), 0, 8, "")
    >>> [(p.epochs, p.epoch_images) for s in (80, 8000) for p in (cut_to(plan, s, (1000, 0), 0.1, 30),)]
    [(8, 100), (30, None)]
    >>> cut_to(plan, 80, (1000, 300), 0.1, 30).epochs  # a validation takes 10 s: no more than two of them
    2
    >>> [cut_to(plan, 800, (1000, 0), 0.1, 30, decoding=0.4, to_decode=once).epoch_images for once in (None, 1000, 500)]
    [200, 500, 750]
    >>> cut_to(plan, 800, (1000, 0), 0.1, 30, decoding=0.4, beside=True).epoch_images
    250
    """
    if to_decode is not None:  # a fit that is too short to see all images decodes only those that it sees
        left_if_once = seconds - to_decode * decoding
        left_if_each_time = seconds / (1 + decoding / image_seconds)
        if left_if_once > left_if_each_time:
            return replace(cut_to(plan, left_if_once, images, image_seconds, most), seconds=seconds)
    train, validation = images
    forward = image_seconds / FORWARD_PER_STEP
    validated = max(validation * (max(forward, decoding) if beside else forward + decoding), 1e-9)
    image_seconds = max(image_seconds, decoding) if beside else image_seconds + decoding
    rounds = max(LEAST_ROUNDS, min(ROUNDS, int(VALIDATION_SHARE * seconds / validated)))
    affordable = max(1.0, (seconds - rounds * validated) / image_seconds)
    if affordable >= min(rounds, most) * train:
        epochs = math.floor(seconds / (train * image_seconds + validated) + 1e-6)
        return replace(plan, epochs=min(most, max(1, epochs)), seconds=seconds)
    return replace(plan, epochs=rounds, epoch_images=math.ceil(affordable / rounds), seconds=seconds)


def cut_to_deadline(
    setup: TrainingSetup,
    plan: FreezePlan,
    deadline: float,
    image_seconds: float,
    decoding: float = 0.0,
    to_decode: int | None = None,
    done: int = 0,
    seen: float = 0.0,
) -> FreezePlan:
    """Return the plan for the time that is left; the most epochs are the user's, else the plan's if these are many.

    Args:
        setup: of the training.
        plan: of the fit.
        deadline: moment of ``time.monotonic`` at which the fit is to end.
        image_seconds: how long an image takes to train what the plan trains.
        decoding: seconds that an image takes to be decoded.
        to_decode: how many images are decoded, once each; None: all of them each time that they are seen.
        done: epochs that a resumed fit has done before; the plan's epochs are those and what is left for it.
        seen: how often these have seen each training image, which is less where they were short.
    """
    images = setup.version.num_images("train"), setup.version.num_images("validation")
    own = own_epochs(setup.make_trainer)
    seconds = max(1.0, deadline - time.monotonic())
    most = max(plan.epochs, MOST_DEEP_EPOCHS) if own is None else own
    left, beside = max(0, math.ceil(most - seen - 1e-6)), setup.execution.is_cuda
    cut = cut_to(plan, seconds, images, image_seconds, left, decoding, to_decode, beside=beside)
    return replace(cut, epochs=done + cut.epochs)


def timed(
    setup: TrainingSetup, plans: Sequence[FreezePlan], deadline: float | None, finished: int = 0
) -> tuple[FreezePlan, ...]:
    """Return plans as they are told of beforehand: those whose fits the time cuts have seconds.

    Args:
        setup: of the training.
        plans: of its phases.
        deadline: moment of ``time.monotonic`` at which the last is to end; None: each takes the epochs of its plan.
        finished: so many of the first phases are done already.
    """
    if deadline is None:
        return tuple(plans)
    cut = [number >= finished and (not plan.only_head or head_is_live(setup)) for number, plan in enumerate(plans)]
    seconds = max(1.0, deadline - time.monotonic()) / max(1, sum(cut))
    return tuple(replace(plan, seconds=seconds) if is_cut else plan for plan, is_cut in zip(plans, cut, strict=True))


def passes(setup: TrainingSetup, plans: Sequence[FreezePlan], deadline: float | None) -> int:
    """Return how often the longest of some fits sees each training image at most.

    Args:
        setup: of the training.
        plans: of the fits, which share the time that is left.
        deadline: moment of ``time.monotonic`` at which the last is to end; None: each takes the epochs of its plan.
    """
    if deadline is not None:
        now = time.monotonic()
        end = now + (deadline - now) / len(plans)
        plans = [cut_to_deadline(setup, plan, end, seconds_per_image(setup)) for plan in plans]
    images = setup.version.num_images("train")
    return max(math.ceil(plan.epochs * (plan.epoch_images or images) / images) for plan in plans)


def check_budget(setup: TrainingSetup, seconds: float, minutes: float, *, freezes: bool = True) -> None:
    """Make sure that the least that a training does fits into the time.

    That is one pass of the frozen network over all images, and all views of them. Where nothing can be cached, two
    rounds that train as long as they validate will do, if that is less.

    Args:
        setup: of the training.
        seconds: that are left for it.
        minutes: that were given.
        freezes: whether the freeze rule may freeze layers whose weights are pretrained.

    Raises:
        TooLittleTimeError: it does not; it says what would do.
    """
    features, train = setup.features, setup.version.num_images("train")
    validation = min(MOST_VALIDATED, setup.version.num_images("validation"))
    views = 1 if features.cache is False else max(1, features.views)
    each = f", {views} views of each training image," if views > 1 else ""
    needed = (views * train + validation) * pass_seconds(setup)
    what = f"{train + validation:,} images{each} take about {needed:,.0f} s to pass through the network once"
    is_live = features.cache is False or setup.recipe.mixes_images
    if is_live or not freezes or not setup.graft.weights.pretrained:
        validation = min(validation, most_validated(train))
        validated = validation * (seconds_per_image(setup) / FORWARD_PER_STEP + decoding_seconds(setup))
        if (rounds := LEAST_ROUNDS * 2 * validated) < needed:
            needed = rounds
            what = f"{LEAST_ROUNDS} rounds, each validated by {validation:,} images, take about {needed:,.0f} s"
    if needed > seconds:
        enough = math.ceil((60 * minutes - seconds + 2 * needed) / 60)
        raise TooLittleTimeError(
            f"{what}, more than Train.minutes leaves beside start, test and export ({max(0, seconds):,.0f} s): give "
            f"Train.minutes={enough} (the next start need not read the images again, and may do with less), or "
            f"{_shorter_pass(setup)}."
        )


def _shorter_pass(setup: TrainingSetup) -> str:
    """Return what makes a pass of the network shorter, as a part of a sentence."""
    decoding = decoding_seconds(setup)
    if decoding <= pass_seconds(setup) / 2:
        seen, own = min(setup.graft.preprocessing.image_size), setup.version.typical_side()
        why = f" than {seen}, as nine in ten images are at most {own} px wide or high" if 2 * own <= seen else ""
        return f"a smaller Backbone.image_size{why}"
    side = reduced_jpeg_side(setup.version.samples("train"), setup.graft.preprocessing)
    remedy = "smaller files" if side is None else f"DecodeSettings.jpeg_side_px={side}"
    return f"{remedy}, as most of that is decoding ({1000 * decoding:,.0f} ms an image)"


def check_clock(make_trainer: MakeTrainer, execution: Execution) -> None:
    """Make sure that a training can go by the clock, before images are read.

    Args:
        make_trainer: ``functools.partial`` of ``pytorch_lightning.Trainer``.
        execution: where it runs.

    Raises:
        UserError: it cannot.
    """
    if execution.world_size > 1:
        raise UserError(
            "Train.minutes is for a training in one process: each would go by a clock of its own. Give "
            "Trainer.devices=1, or train without a time limit."
        )
    if getattr(make_trainer, "keywords", {}).get("min_epochs") is not None:
        raise UserError("Train.minutes may end a training before Trainer.min_epochs: leave one of them out.")


def end_seconds(setup: TrainingSetup) -> float:
    """Return what to leave for the end of a run: export, calibration, reference, test images, figures and tracking.

    Validation images pass the network once more for the reference, unless the last phase was on cached activations,
    and are decoded again for what is seen of them without it.
    """
    counts = setup.version.counts()
    tested, validation = (sum(counts[split].values()) for split in ("test", "validation"))
    calibrated, referred = min(MOST_CALIBRATED, validation), min(MOST_REFERRED, validation)
    passed = tested + calibrated + referred
    classified = passed * pass_seconds(setup) + referred * decoding_seconds(setup)
    return OVERHEAD_SECONDS + classified + scoring_seconds(setup)


def scoring_seconds(setup: TrainingSetup) -> float:
    """Return how long the scores of the test images take beyond those of a few of few classes."""
    counts = setup.version.counts()["test"]
    return SCORING_SECONDS * sum(counts.values()) * len(counts)


def average_seconds(setup: TrainingSetup, members: int, crops: int) -> float:
    """Return what to leave for averaging models: their crops of the validation and test images, figures and tracking.

    Args:
        setup: of their training.
        members: how many there are.
        crops: of each image.
    """
    counts = setup.version.counts()
    images = sum(sum(counts[split].values()) for split in ("validation", "test"))
    each = decoding_seconds(setup) + members * crops * seconds_per_image(setup) / PASSES_PER_STEP
    return OVERHEAD_SECONDS + images * each + scoring_seconds(setup)


class Clock(pl.Callback):
    """Ends a fit when its time is over, at the end of the epoch that is nearest.

    Args:
        seconds: that the fit may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._start = self._epoch = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """Begin to count."""
        self._start = self._epoch = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 - likewise
        """Stop if half of another epoch would be too much."""
        now = time.perf_counter()
        last, self._epoch = now - self._epoch, now
        if now - self._start + last / 2 > self._seconds:
            trainer.should_stop = True
