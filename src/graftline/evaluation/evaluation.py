"""The evaluation of a predictor on one split of a dataset version."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from matplotlib.figure import Figure

from graftline.console import progress
from graftline.data.version import DatasetVersion, Samples
from graftline.errors import UserError
from graftline.evaluation.metrics import Interval, metrics_json, score
from graftline.evaluation.notes import notes_on
from graftline.evaluation.predictions import table
from graftline.files import atomic_file
from graftline.report import figures
from graftline.report.style import save

FEWEST_RESAMPLES = 100  # with fewer, the ends of a 95 % interval rest on one or two resamples


class Classifier(Protocol):
    """What an evaluation needs of a predictor."""

    @property
    def class_names(self) -> Sequence[str]:
        """K names, in the order of the columns that ``predict`` returns."""
        ...

    def predict(self, images: Iterable[str], batch_size: int, on_progress: Callable[[int], None] | None) -> np.ndarray:
        """Return (N, K) probabilities of image files; ``on_progress`` gets the number of images just done."""
        ...


@dataclass(frozen=True)
class Result:
    """What an evaluation found, and where its files lie."""

    scores: dict[str, Interval]
    predictions: Path  # Parquet, one row per image
    figures: dict[str, Path]  # PNG by name
    images_per_second: float
    notes: list[str]  # sentences on how far to trust the scores

    def metrics_json(self) -> dict[str, dict[str, float]]:
        """Return the scores as ``result.json`` holds them: name → ``{"value", "low", "high"}``."""
        return metrics_json(self.scores)


@dataclass(frozen=True)
class Evaluation:
    """How to evaluate: one crop per image, each score with a 95 % bootstrap interval.

    Attributes:
        resamples: how many resamples give an interval, at least 100.
        batch_size: images per step of the predictor.
        engine: what the caller is to load the predictor with.
        seed: of the resampling.

    Raises:
        UserError: too few resamples.
    """

    resamples: int = 1000
    batch_size: int = 32
    engine: Literal["onnx", "torch"] = "onnx"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < FEWEST_RESAMPLES:
            raise UserError(
                f"evaluation.resamples={self.resamples} is too few for a 95 % interval: "
                f"use at least {FEWEST_RESAMPLES}, or leave it at 1000."
            )

    def run(self, predictor: Classifier, version: DatasetVersion, directory: Path, split: str = "test") -> Result:
        """Classify the images of a split and write ``predictions.parquet`` and ``figures/*.png`` into ``directory``.

        Raises:
            UserError: the predictor's classes are not the dataset version's, the split is empty, an image cannot be
                read, or the probabilities or weights are no numbers.
        """
        class_names = version.class_names
        if tuple(predictor.class_names) != class_names:
            raise UserError(
                f"The model's classes ({', '.join(predictor.class_names)}) are not those of {version.name} "
                f"({', '.join(class_names)}): evaluate it on a dataset version with the classes it was trained for."
            )
        samples = version.samples(split)
        probabilities, seconds = self._predict(predictor, samples, split)
        scores = score(probabilities, samples.labels, class_names, samples.weights, self.resamples, self.seed)

        rows = version.table().set_index("path").loc[samples.paths]
        predictions = directory / "predictions.parquet"
        with atomic_file(predictions) as temporary:
            table(samples, probabilities, class_names, rows["sha256"].tolist()).to_parquet(temporary, index=False)
        drawn = _draw(samples, probabilities, class_names, scores)
        return Result(
            scores=scores,
            predictions=predictions,
            figures={name: save(figure, directory / "figures" / f"{name}.png") for name, figure in drawn.items()},
            images_per_second=len(samples.paths) / seconds,
            notes=notes_on(probabilities, samples.labels, class_names, scores),
        )

    def _predict(self, predictor: Classifier, samples: Samples, split: str) -> tuple[np.ndarray, float]:
        """Return the probabilities (N, K) and the seconds they took."""
        start = time.perf_counter()
        with progress(f"Classifying the {split} images", total=len(samples.paths)) as bar:
            probabilities = predictor.predict(
                samples.paths, self.batch_size, lambda done: bar.advance(bar.task_ids[0], done)
            )
        return probabilities, time.perf_counter() - start


def _draw(
    samples: Samples, probabilities: np.ndarray, class_names: Sequence[str], scores: dict[str, Interval]
) -> dict[str, Figure]:
    """Return the figures that the images allow: no ROC curve of a single class, no mistakes where there are none."""
    labels = samples.labels
    drawn = {"confusion_matrix": figures.confusion_matrix(probabilities, labels, class_names)}
    if "auroc" in scores:
        drawn["roc_curves"] = figures.roc_curves(probabilities, labels, class_names, scores["auroc"])
    drawn["precision_recall_curves"] = figures.precision_recall_curves(probabilities, labels, class_names)
    drawn["reliability_diagram"] = figures.reliability_diagram(probabilities, labels, scores["ece"])
    mistakes = figures.confident_mistakes(samples, probabilities, class_names)
    if mistakes is not None:
        drawn["confident_mistakes"] = mistakes
    return drawn
