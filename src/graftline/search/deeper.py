"""The last comparison of a search: the candidates that are left, trained as a whole for the same time each.

A head tells what a network knows already, not what it would learn, and nothing of the steps that a smaller image size
leaves time for. Training and score are on training images: the validation split stays unseen.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from graftline.data.folds import assign_folds
from graftline.data.version import DatasetVersion
from graftline.errors import UserError, first_line
from graftline.evaluation.head_score import Floats, HeadScore
from graftline.evaluation.subset import with_rare_first
from graftline.features.key import view_key
from graftline.files import digest
from graftline.freezing.depth import MOST_DEEP_EPOCHS, deep_plan
from graftline.freezing.evidence import too_few_to_choose
from graftline.freezing.measurement import BoundaryTrial, Difference
from graftline.search.candidates import Candidate
from graftline.search.contestant import PassSeconds
from graftline.search.halving import FIRST_IMAGES, least_of_class
from graftline.search.history import HEAD, WHOLE, ScoredCandidate, ScoreFiles, SearchHistory
from graftline.search.ledger import TimeLedger
from graftline.search.rounds import TrainingImages
from graftline.training.budget import cut_to
from graftline.training.fit_directory import FitDirectory
from graftline.training.image_seconds import seconds_per_image
from graftline.training.setup import TrainingSetup, identify
from graftline.training.trial import Trials

logger = logging.getLogger(__name__)

SAME_TIME = 0.1  # scores of trainings whose times differ by no more than this share are compared
LEAST_HELD_OUT = 25  # images of each class, as far as the fold has them
MOST_CANDIDATES = 3  # that are trained: the time of each is that of all divided by their number


def hold_out(version: DatasetVersion, images: TrainingImages) -> DatasetVersion:
    """Return a version of the training images alone: a fold is its validation split, the others its training split.

    It is the fold of the most groups: the images of one large group say little of others. Of a rare class as many are
    held out as that fold has, up to 25.
    """
    folds = assign_folds(images.samples.labels, images.groups)
    groups = np.array(images.groups)
    held = int(np.argmax([len(np.unique(groups[folds == fold])) for fold in range(folds.max() + 1)]))
    splits = {sha256: "train" for sha256, fold in zip(images.samples.sha256, folds, strict=True) if fold != held}
    rows = np.flatnonzero(folds == held)
    least = least_of_class(LEAST_HELD_OUT, FIRST_IMAGES, images.num_classes)
    rows = rows[with_rare_first(images.samples.labels[rows], FIRST_IMAGES, least)][:FIRST_IMAGES]
    held_out = [images.samples.sha256[row] for row in rows.tolist()]
    return version.divided({**dict.fromkeys(held_out, "validation"), **splits})


def train_deeper(
    setup: TrainingSetup,
    history: SearchHistory,
    images: TrainingImages,
    ledger: TimeLedger,
    files: ScoreFiles,
    directory: Path,
    until: float,
    pass_seconds: PassSeconds,
) -> None:
    """Train the best candidates as a whole, briefly, and add their scores; nothing is done where time is too short.

    Args:
        setup: of a training on the images.
        history: whose best candidates are trained.
        images: of the training split.
        ledger: of the search.
        files: of scores.
        directory: for checkpoints, which do not stay.
        until: seconds since the search began.
        pass_seconds: of an image in the frozen pass, predicted.
    """
    left = finalists(history)
    if len(left) < 2:
        return
    version = hold_out(setup.version, images)
    if too_few_to_choose(list(version.counts()["validation"].values())) is not None:
        logger.info(f"Too few training images to hold out some and compare the best {len(left)} trained as a whole.")
        return
    weights = images.weights(version.samples("validation").labels)
    each = (until - ledger.now) / len(left)
    known = {one.name: found for one in left if (found := files.load(one, WHOLE, 0, ledger.now)) is not None}
    allowed = [one.allowed for one in known.values()]
    if len(known) == len(left) and _are_as_long(allowed, each):
        each = allowed[0]
    else:
        first = min(FIRST_IMAGES, len(images))
        affordable = [one for one in left if first * pass_seconds.of_step(one) <= each]
        if not affordable or affordable == [history.best_by_head()]:  # which alone would be compared with nothing
            logger.info(f"No time to compare the best {len(left)} trained as a whole: their heads decide.")
            return
        left, each = affordable, (until - ledger.now) / len(affordable)
        each = _as_before([known[one.name].allowed for one in left if one.name in known], each)
    logger.info(
        f"Comparing {', '.join(one.name for one in left)}, trained as a whole, {each:.0f} s each, on "
        f"{version.num_images('validation'):,} training images that are held out:"
    )
    for candidate in left:
        scored = known.get(candidate.name)
        if scored is None or abs(scored.allowed - each) > SAME_TIME * each:  # more steps, another score
            with ledger.spend(candidate.name):
                scored = _train(
                    candidate, replace(setup, version=version), each, ledger, directory, pass_seconds.decode, weights
                )
            if scored is None:
                continue
            files.save(scored)
        history.add(scored)
        logger.info(scored.line())


def digest_recipe(setup: TrainingSetup) -> str:
    """Return a short digest of all that a whole network's training depends on, beside the network and the images."""
    parts = {"optimizer": setup.optimizer, "schedule": setup.schedule, "trainer": setup.make_trainer}
    settings = {name: identify(part) for name, part in parts.items()}
    recipe = {"recipe": asdict(replace(setup.recipe, resume=None)), "batchnorm": setup.batchnorm}
    augment = view_key(setup.policy.without_candidates(), setup.seed, 0)
    return digest({**settings, **recipe, "augment": augment, "seed": setup.seed})[:8]


def _as_before(allowed: Sequence[float], each: float) -> float:
    """Return the time for each network: that of an interrupted comparison, where it is most of what there is now.

    >>> _as_before([25.0], 30.0), _as_before([25.0], 300.0), _as_before([], 30.0)
    (25.0, 300.0, 30.0)
    """
    return next((seconds for seconds in allowed if each / 2 <= seconds <= each), each)


def _are_as_long(allowed: Sequence[float], each: float) -> bool:
    """Tell whether trainings that are there were as long as each other, and not too short for what there is now.

    >>> _are_as_long([25.0, 25.5], 10.0), _are_as_long([25.0, 40.0], 10.0), _are_as_long([25.0, 25.0], 60.0)
    (True, False, False)
    """
    return max(allowed) - min(allowed) <= SAME_TIME * allowed[0] and min(allowed) >= each / 2


def finalists(history: SearchHistory) -> Sequence[Candidate]:
    """Return the candidates of the last round that are not clearly worse than its best, and the one of fewest steps.

    The best come first. The last is the cheapest of those that were scored, however good its head is: it takes the most
    steps in a given time, which is what teaches a network about images that are unlike those it knows.
    """
    by_name = {one.name: one for one in history.candidates}
    good = [by_name[verdict.name] for verdict in history.verdicts if not verdict.is_clearly_worse][:MOST_CANDIDATES]
    cheapest = min((one.candidate for one in history.scored), key=lambda candidate: candidate.macs, default=None)
    if cheapest is None or cheapest in good:
        return good
    return [*good[: MOST_CANDIDATES - 1], cheapest]


def _train(
    candidate: Candidate,
    setup: TrainingSetup,
    seconds: float,
    ledger: TimeLedger,
    directory: Path,
    decode: float,
    weights: Floats,
) -> ScoredCandidate | None:
    """Train a candidate as a whole for so many seconds; None where that is too short, or the training fails.

    The score is one in which an image of each class counts by its weight (K,).
    """
    start = ledger.now
    try:
        setup = replace(setup, graft=candidate.backbone.build(setup.version.class_names))
        first, step = min(FIRST_IMAGES, setup.version.num_images("train")), seconds_per_image(setup)
        needed = first * (max(step, decode) if setup.execution.is_cuda else step + decode)
        if needed > seconds:
            logger.info(f"  {candidate.name:<32} no time, as {first} images would take {needed:.0f} s")
            return None
        trial = _fit(setup, directory, lambda: seconds - (ledger.now - start), step, decode, weights)
    except UserError as error:
        logger.warning(f"{candidate.name} is not compared: {first_line(error)}.")
        return None
    score = _weighed(HeadScore(trial.losses, trial.hits, 0.0), setup.version, weights)
    return ScoredCandidate(candidate, trial.trained_images, score, ledger.now - start, ledger.now, WHOLE, seconds)


def _weighed(score: HeadScore, version: DatasetVersion, weights: Floats) -> HeadScore:
    """Return the score of the held-out images as one in which an image of each class counts by its weight (K,)."""
    of_images = weights[version.samples("validation").labels]
    return replace(score, losses=score.losses * of_images, hits=score.hits * of_images)


def _fit(
    setup: TrainingSetup,
    directory: Path,
    seconds_left: Callable[[], float],
    image_seconds: float,
    decoding: float,
    weights: Floats,
) -> BoundaryTrial:
    """Fit the whole network for the time that is left."""
    files, plan = FitDirectory(directory), deep_plan(setup.graft.network, 0, "compared", epochs=1)
    try:
        images = setup.version.num_images("train"), setup.version.num_images("validation")
        to_decode = sum(images) if setup.execution.device == "cpu" else None  # memory keeps them where it can
        seconds = max(1.0, seconds_left())
        beside = setup.execution.is_cuda
        cut = cut_to(plan, seconds, images, image_seconds, MOST_DEEP_EPOCHS, decoding, to_decode, beside=beside)
        return Trials(setup, files, weights)(cut)
    finally:
        shutil.rmtree(files.trial, ignore_errors=True)


def choose(history: SearchHistory) -> Candidate | None:
    """Return the candidate to train: the best by its head, unless another one trained as a whole is clearly better.

    That has to beat the better of two scores, that of the best head and that of its own training as a whole.
    """
    by_head = history.best_by_head()
    whole = [one for one in history.scored if one.depth == WHOLE]
    if by_head is None or not whole:
        return by_head
    best = min(whole, key=lambda one: one.score.log_loss)
    own = [history.last(by_head.name, depth) for depth in (WHOLE, HEAD)]
    reference = min((one for one in own if one is not None), key=lambda one: one.score.log_loss)
    on_same_images = reference.depth == WHOLE and len(best.score.losses) == len(reference.score.losses)
    difference = (Difference.of if on_same_images else Difference.of_independent)(
        best.score.losses, reference.score.losses
    )
    return best.candidate if difference.is_below_zero else by_head


def is_chosen_as_whole(history: SearchHistory, chosen: Candidate) -> bool:
    """Tell whether a candidate was chosen by its training as a whole, or was clearly better so than by its head."""
    by_head = history.best_by_head()
    if by_head is None or chosen is not by_head:
        return by_head is not None
    whole, head = (history.last(chosen.name, depth) for depth in (WHOLE, HEAD))
    if whole is None or head is None:
        return False
    return Difference.of_independent(whole.score.losses, head.score.losses).is_below_zero
