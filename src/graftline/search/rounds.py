"""The rounds of a search: heads of all candidates on a few images, of those that stay on twice as many, and so on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graftline.data.folds import assign_folds
from graftline.data.version import DatasetVersion, Samples
from graftline.errors import UserError, first_line
from graftline.evaluation.head_score import Floats, HeadScore, Ints, score_head
from graftline.evaluation.subset import class_weights, stratified_order, warn_of_one_group, with_rare_first
from graftline.features.cache import CacheFullError
from graftline.features.cut import UncuttableError
from graftline.search.candidates import Candidate
from graftline.search.contestant import BuiltCandidate, PassSeconds
from graftline.search.halving import LEAST_OF_CLASS, contenders, first_images, least_of_class, next_images
from graftline.search.history import HEAD, ScoredCandidate, ScoreFiles, SearchHistory
from graftline.search.ledger import TimeLedger
from graftline.training.forecast import EXPORT_SECONDS
from graftline.training.setup import TrainingSetup

logger = logging.getLogger(__name__)

NO_TIME = "not tried, for lack of time"
PREPARE_SECONDS = 3.0  # to build, cut and open a network, beside its export


@dataclass(frozen=True)
class TrainingImages:
    """The training images that heads are fitted to and scored on; no others are ever looked at.

    Attributes:
        samples: in an order each beginning of which has the classes in proportion, and those of a round ten of each
            at least, as far as there are.
        groups: of each image; those of one group look alike and are never in two folds.
        num_classes: how many the data set has.
    """

    samples: Samples
    groups: Sequence[str]
    num_classes: int

    @classmethod
    def of(cls, version: DatasetVersion) -> "TrainingImages":
        """Order the training images of a dataset version."""
        samples, groups = version.samples("train"), version.groups("train")
        warn_of_one_group(groups)
        order, num_classes = stratified_order(samples.labels, samples.sha256), len(version.class_names)
        first = first_images(len(order), num_classes)
        least = least_of_class(LEAST_OF_CLASS, first, num_classes)
        order = order[with_rare_first(samples.labels[order], first, least)]
        return cls(samples.take(order), [groups[row] for row in order.tolist()], num_classes)

    def __len__(self) -> int:
        return len(self.samples.paths)

    def weights(self, labels: Ints) -> Floats:
        """Return what an image of each class (K,) counts for among some of them, so that a score is one of all."""
        counts = np.bincount(self.samples.labels, minlength=self.num_classes)
        return class_weights(labels, counts / len(self))


class HeadRounds:
    """Scores the heads of candidates in rounds of ever more images.

    Args:
        setup: of a training on the images.
        history: takes what is found; it is there also when the rounds are interrupted.
        images: that are scored.
        ledger: of the search.
        files: of scores.
        built: candidates that are built already, by name.
        pass_seconds: of an image in the frozen pass, predicted.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        history: SearchHistory,
        images: TrainingImages,
        ledger: TimeLedger,
        files: ScoreFiles,
        built: dict[str, BuiltCandidate],
        pass_seconds: PassSeconds,
    ) -> None:
        self._setup = setup
        self._history = history
        self._images = images
        self._ledger = ledger
        self._files = files
        self._built = built  # used once: all networks at a time might not fit into memory
        self._pass_seconds = pass_seconds
        self._head_seconds = 0.0  # per image, of the head that was scored last; many classes take long

    def run(self, until: float) -> None:
        """Score candidates until one is left, all images are scored, or the next round would not end in time.

        Args:
            until: seconds since the search began.
        """
        active = [one for one in self._history.candidates if one.name not in self._history.outcomes]
        images: int | None = first_images(len(self._images), self._images.num_classes)
        while images is not None and active:
            names = self._round(active, images, until)
            active = [one for name in names for one in active if one.name == name]
            images = next_images(images, len(self._images)) if len(active) > 1 else None
            if images is not None and self._is_too_late(active, images, until):
                logger.info(f"  No time for a round of {images:,} images: what is known has to do.")
                break

    def _round(self, active: Sequence[Candidate], images: int, until: float) -> list[str]:
        """Score candidates on as many images; returns the names of those that stay, the best first."""
        logger.info(f"Scoring {len(active)} candidate{'s' if len(active) > 1 else ''} on {images:,} training images:")
        is_scored = False
        for candidate in active:
            is_new = self._history.last(candidate.name) is None
            if is_scored and is_new and self._is_too_late([candidate], images, until):
                self._history.outcomes[candidate.name] = NO_TIME
                continue
            if (scored := self._score(candidate, images)) is not None:
                is_scored = True
                logger.info(scored.line())
        return contenders(self._history.judge_largest_round()) if is_scored else []

    def _score(self, candidate: Candidate, images: int) -> ScoredCandidate | None:
        """Return the score of a candidate, from disk or found now; None where it cannot be."""
        scored = self._files.load(candidate, HEAD, images, self._ledger.now)
        if scored is None:
            start = self._ledger.now
            with self._ledger.spend(candidate.name):
                try:
                    contestant = self._built.pop(candidate.name, None) or BuiltCandidate.of(candidate, self._setup)
                    samples = self._images.samples.take(np.arange(images))
                    activations = contestant.activations(samples)
                    before = self._ledger.now
                    score = self._score_head(activations, samples.labels)
                except (UncuttableError, CacheFullError, UserError) as error:
                    self._history.outcomes[candidate.name] = f"not tried: {first_line(error)}"
                    logger.warning(f"{candidate.name} is left out: {first_line(error)}.")
                    return None
                self._head_seconds = (self._ledger.now - before) / images
            scored = ScoredCandidate(candidate, images, score, self._ledger.now - start, self._ledger.now)
            self._history.add(scored)  # before the file is there: what is seen there counts
            self._files.save(scored)
        else:
            self._history.add(scored)
        return scored

    def _score_head(self, activations: npt.NDArray[np.floating], labels: Ints) -> HeadScore:
        """Score a head on the activations (N, F) of the first N images, as if classes were as frequent as in all."""
        folds = assign_folds(labels, self._images.groups[: len(labels)])
        return score_head(activations, labels, self._images.num_classes, folds, self._images.weights(labels))

    def _is_too_late(self, candidates: Sequence[Candidate], images: int, until: float) -> bool:
        """Tell whether scores would not be there in time; those on disk are read in no time."""
        unknown = [one for one in candidates if self._files.load(one, HEAD, images, self._ledger.now) is None]
        return bool(unknown) and self._ledger.now + sum(self._forecast(one, images) for one in unknown) > until

    def _forecast(self, candidate: Candidate, images: int) -> float:
        """Predict how many seconds a score will take; at worst, as what was computed before may be there already."""
        last = self._history.last(candidate.name)
        if last is not None:
            return last.seconds * images / last.images
        return PREPARE_SECONDS + EXPORT_SECONDS + images * (self._pass_seconds.of(candidate) + self._head_seconds)
