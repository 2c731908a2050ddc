"""The last comparison of a search: the candidates that are left, trained as a whole for the same time each.

A head tells what a network knows already, not what it would learn, and nothing of the steps that a smaller image size
leaves time for. Training and score are on training images: the validation split stays unseen.

Letters: N images.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from graftline.data.version import DatasetVersion, Samples
from graftline.errors import UserError, first_line
from graftline.freezing.measurement import Difference
from graftline.freezing.plan import plan_from_depth
from graftline.freezing.rules import Nothing
from graftline.search.candidates import Candidate
from graftline.search.contestant import Contestant, take
from graftline.search.halving import FIRST_IMAGES
from graftline.search.head_score import HeadScore
from graftline.search.ledger import Ledger
from graftline.search.rounds import TrainingImages
from graftline.search.scored import WHOLE, ScoredCandidate, ScoreFiles, Trials
from graftline.search.subset import assign_folds
from graftline.training.fit_directory import FitDirectory
from graftline.training.setup import TrainingSetup
from graftline.training.trial import try_boundary

logger = logging.getLogger(__name__)

MOST_CANDIDATES = 3  # that are trained: the time of each is that of all divided by their number
MOST_EPOCHS = 4  # of the short fit; more would be the training itself
STEP_PASSES = 3.0  # forward passes that a step takes as long as: forward, and backward to inputs and weights


@dataclass(frozen=True)
class HeldOut(DatasetVersion):
    """A dataset version whose validation images are some of its training images.

    Attributes:
        training: the images to train on.
        held_out: the images to validate on.
    """

    training: Samples | None = None
    held_out: Samples | None = None

    def samples(self, split: str) -> Samples:
        """Return the images of one split; there are none for a test."""
        found = {"train": self.training, "validation": self.held_out}[split]
        assert found is not None
        return found

    @classmethod
    def of(cls, version: DatasetVersion, images: TrainingImages) -> "HeldOut":
        """Divide the training images: a fold of them is held out, at most as many as a first round has."""
        folds = assign_folds(images.samples.labels, images.groups)
        held_out, training = np.flatnonzero(folds == 0)[:FIRST_IMAGES], np.flatnonzero(folds != 0)
        facts = (version.name, version.digest, version.directory, version.class_names, version.parent)
        return cls(*facts, take(images.samples, training), take(images.samples, held_out))

    def limited(self, images: int) -> "HeldOut":
        """Return the same with fewer training images."""
        assert self.training is not None
        return replace(self, training=take(self.training, np.arange(images)))


@dataclass(frozen=True)
class ShortFit:
    """How many images and epochs of training fit into a time."""

    images: int
    epochs: int

    @classmethod
    def within(cls, seconds: float, forward: float, training: int, held_out: int) -> "ShortFit | None":
        """Plan a fit; None where not even one epoch of a first round's images fits.

        Args:
            seconds: that it may take.
            forward: seconds of a forward pass of an image.
            training: images there are to train on.
            held_out: images that are scored after each epoch.

        >>> ShortFit.within(100, 0.01, 2000, 500), ShortFit.within(200, 0.01, 2000, 500)
        (ShortFit(images=2000, epochs=1), ShortFit(images=2000, epochs=3))
        >>> ShortFit.within(50, 0.01, 2000, 500), ShortFit.within(10, 0.01, 2000, 500)
        (ShortFit(images=1500, epochs=1), None)
        """
        images = min(training, int((seconds / forward - held_out) / STEP_PASSES))
        if images < min(FIRST_IMAGES, training):
            return None
        epochs = int(seconds / forward / (STEP_PASSES * images + held_out))
        return cls(images, min(MOST_EPOCHS, max(1, epochs)))


def train_deeper(
    setup: TrainingSetup,
    trials: Trials,
    images: TrainingImages,
    ledger: Ledger,
    files: ScoreFiles,
    directory: Path,
    until: float,
) -> None:
    """Train the best candidates as a whole, briefly, and add their scores; nothing is done where time is too short.

    Args:
        setup: of a training on the images.
        trials: whose best candidates are trained.
        images: of the training split.
        ledger: of the search.
        files: of scores.
        directory: for checkpoints, which do not stay.
        until: seconds since the search began.
    """
    left = finalists(trials)
    if len(left) < 2:
        return
    version = HeldOut.of(setup.version, images)
    held_out, training = len(version.samples("validation").paths), len(version.samples("train").paths)
    each = (until - ledger.now) / len(left)
    logger.info(
        f"Comparing the best {len(left)} trained as a whole, {each:.0f} s each, on {held_out:,} images held out:"
    )
    for candidate in left:
        with ledger.spend(candidate.name):
            contestant = Contestant.of(candidate, replace(setup, version=version))
            short = ShortFit.within(each, contestant.forward_seconds(images.samples), training, held_out)
            scored = None if short is None else _train(contestant, version, short, ledger, files, directory)
        if short is None:
            logger.info(f"  {candidate.name:<32} no time")
        elif scored is not None:
            trials.scored.append(scored)
            logger.info(f"{scored.line()}; {short.epochs} epoch{'s' if short.epochs > 1 else ''} of {short.images:,}")


def finalists(trials: Trials) -> Sequence[Candidate]:
    """Return the candidates of the last round that are not clearly worse than its best, the best first."""
    by_name = {one.name: one for one in trials.candidates}
    good = [by_name[verdict.name] for verdict in trials.verdicts if not verdict.is_clearly_worse]
    return good[:MOST_CANDIDATES]


def _train(
    contestant: Contestant, version: HeldOut, short: ShortFit, ledger: Ledger, files: ScoreFiles, directory: Path
) -> ScoredCandidate | None:
    """Train a network as a whole, briefly; None where that fails, as it may diverge."""
    candidate, start = contestant.candidate, ledger.now
    if (known := files.load(candidate, short.images, ledger.now, WHOLE)) is not None:
        return known
    network = contestant.setup.graft.network
    plan = plan_from_depth(network, 0, "trained as a whole", epochs=short.epochs, learning_rate=Nothing().learning_rate)
    setup = replace(contestant.setup, version=version.limited(short.images))
    try:
        trial = try_boundary(setup, FitDirectory(directory), plan)
    except UserError as error:
        logger.warning(f"{candidate.name} is not compared: {first_line(error)}.")
        return None
    score = HeadScore(trial.losses, trial.hits, 0.0)
    scored = ScoredCandidate(candidate, short.images, score, ledger.now - start, ledger.now, WHOLE)
    files.save(scored)
    return scored


def choose(trials: Trials) -> Candidate | None:
    """Return the candidate to train: the best by its head, unless another one trained as a whole is clearly better."""
    by_head = trials.best_by_head()
    whole = {one.candidate.name: one for one in trials.scored if one.depth == WHOLE}
    if by_head is None or by_head.name not in whole:
        return by_head
    reference = whole[by_head.name]
    comparable = [one for one in whole.values() if len(one.score.losses) == len(reference.score.losses)]
    best = min(comparable, key=lambda one: one.score.log_loss)
    better = Difference.of(best.score.losses, reference.score.losses).is_below_zero
    return best.candidate if better else by_head
