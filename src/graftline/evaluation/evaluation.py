"""The evaluation of a predictor on one split of a dataset version: predict, then score."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from graftline.bundle.engines import EngineName
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.bootstrap import require_resampling
from graftline.evaluation.metrics import Interval, metrics_json, score
from graftline.evaluation.notes import notes_on
from graftline.evaluation.predictions import Classifier, Predictions, largest_difference, predict_split, refusal_of

logger = logging.getLogger(__name__)

CHECKED_IMAGES = 32  # for which a predictor confirms logits that are known
TOLERANCE = 1e-4  # of such a logit, absolute, or relative where they exceed 1: as for a bundle's ONNX file


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        predictions: what all the rest comes from.
        scores: each with its interval, by name.
        notes: sentences on how far to trust the scores.
        images_per_second: files to logits.
    """

    predictions: Predictions
    scores: Mapping[str, Interval]
    notes: list[str]
    images_per_second: float

    def of_split(self, name: str) -> "EvaluationResult":
        """Return the result under another name of the split, which its metrics have."""
        return replace(self, predictions=replace(self.predictions, split=name))

    def metrics_json(self) -> dict[str, dict[str, float]]:
        """Return the scores as ``result.json`` holds them: name → ``{"value", "low", "high"}``."""
        return metrics_json(self.scores)


@dataclass(frozen=True)
class Evaluation:
    """How to evaluate: one crop per image, each score with a 95 % bootstrap interval (Hydra target).

    Attributes:
        resamples: how many resamples give an interval, at least 100.
        batch_size: images per step of the predictor, at least 1.
        engine: what the caller is to load the predictor with.
        seed: of the resampling, at least 0.

    Raises:
        UserError: too few resamples, an empty batch or a negative seed.
    """

    resamples: int = 1000
    batch_size: int = 32
    engine: EngineName = "onnx"
    seed: int = 0

    def __post_init__(self) -> None:
        require_resampling("Evaluation", self.resamples, self.seed)
        if self.batch_size < 1:
            raise UserError(f"Evaluation.batch_size is {self.batch_size}, it must be at least 1.")

    def run(
        self,
        predictor: Classifier,
        version: DatasetVersion,
        split: str = "test",
        known_logits: np.ndarray | None = None,
        known_from: str = "their cached activations",
        known_refused: np.ndarray | None = None,
    ) -> EvaluationResult:
        """Classify the images of a split and score what the predictor said of them.

        Args:
            predictor: the classifier.
            version: has the images.
            split: its name.
            known_logits: (N, K), what the predictor should give for the images. Where it does so for some of them, they
                are scored and no other image is classified.
            known_from: where these come from, in words.
            known_refused: (N,), which of them it should mark as none of its classes. A predictor that marks some
                classifies all images where this is not known.

        Raises:
            UserError: the predictor's classes are not the dataset version's, the split is empty, an image cannot be
                read, or the probabilities or weights are no numbers.
        """
        speed, tells_all = None, known_refused is not None or refusal_of(predictor) is None
        if known_logits is not None and tells_all:
            found = confirm(known_logits, predictor, version, split, self.batch_size)
            if found.holds:
                logger.info(f"The {split} images are scored by {known_from}; {found}.")
                speed = found.images_per_second
        elif known_logits is not None:
            logger.info("All images are classified again, as nobody noted which of them this model refuses.")
        start = time.perf_counter()
        known = (None, None) if speed is None else (known_logits, known_refused)
        predictions = predict_split(predictor, version, split, self.batch_size, *known)
        if speed is None:
            speed = len(predictions.paths) / (time.perf_counter() - start)
        scores = score(predictions, self.resamples, self.seed)
        return EvaluationResult(predictions, scores, notes_on(predictions, scores), speed)


@dataclass(frozen=True)
class Confirmation:
    """What a classifier gives for some images, beside what was known.

    Attributes:
        difference: the largest of a logit, absolute, or relative where they exceed 1.
        images_per_second: files to logits.
        checked: how many images were classified.
        images: of how many.
        split: of which they are.
    """

    difference: float
    images_per_second: float
    checked: int
    images: int
    split: str

    @property
    def holds(self) -> bool:
        """Whether the classifier gives what was known."""
        return self.difference <= TOLERANCE  # which no NaN is

    def __str__(self) -> str:
        checked = f"for {self.checked} of {self.images:,} {self.split} images"
        return f"{checked} the bundle's logits differ by {self.difference:.1e}"


def confirm(
    known_logits: np.ndarray, predictor: Classifier, version: DatasetVersion, split: str, batch_size: int
) -> Confirmation:
    """Classify some images of a split, of which the logits are known; warn where they are others.

    Args:
        known_logits: (N, K), of all images of the split.
        predictor: the classifier.
        version: has the images.
        split: its name.
        batch_size: images per step of the predictor.
    """
    paths = version.samples(split).paths
    rows = np.unique(np.linspace(0, len(paths) - 1, CHECKED_IMAGES).astype(int))
    start = time.perf_counter()
    difference = largest_difference(predictor, [paths[row] for row in rows], known_logits[rows], batch_size)
    found = Confirmation(difference, len(rows) / (time.perf_counter() - start), len(rows), len(paths), split)
    if not found.holds:
        logger.warning(f"What was computed ahead is not used, {found}: all images are classified.")
    return found
