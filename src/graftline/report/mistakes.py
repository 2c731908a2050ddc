"""The mistakes that a model is surest of, with what may explain them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graftline.evaluation.predictions import Predictions
from graftline.report.content import Explanations
from graftline.report.thumbnails import Thumbnail, thumbnail, thumbnails

MOST_SHOWN = 12
SIDE, NEIGHBOR_SIDE = 256, 96  # px


@dataclass(frozen=True)
class Mistake:
    """An image that is classified wrongly.

    Attributes:
        name: of its file.
        label: name of its class.
        answer: name of the class that was answered.
        confidence: probability of the answer.
        of_label: probability of its class.
        image: a thumbnail.
        marked: the same with the parts marked that decided; None where they are not known.
        neighbors: the nearest training images, and what is said of each.
    """

    name: str
    label: str
    answer: str
    confidence: float
    of_label: float
    image: Thumbnail
    marked: Thumbnail | None
    neighbors: Sequence[tuple[Thumbnail, str]]


def surest_mistakes(predictions: Predictions, explanations: Explanations | None = None) -> list[Mistake]:
    """Return the mistakes that the model is surest of, the surest first.

    Args:
        predictions: of N images.
        explanations: of some of them.
    """
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    rows = wrong[np.argsort(-predictions.confidences[wrong], kind="stable")][:MOST_SHOWN].tolist()
    images = thumbnails([predictions.paths[row] for row in rows], predictions.decoding, SIDE)
    return [_mistake(predictions, row, image, explanations) for row, image in zip(rows, images, strict=True)]


def _mistake(predictions: Predictions, row: int, image: Thumbnail, explanations: Explanations | None) -> Mistake:
    explained = None if explanations is None else explanations.of_rows.get(row)
    near = () if explained is None else explained.neighbors
    small = thumbnails([one.path for one in near], predictions.decoding, NEIGHBOR_SIDE) if near else []
    label = int(predictions.labels[row])
    return Mistake(
        name=Path(predictions.paths[row]).name,
        label=predictions.class_names[label],
        answer=predictions.class_names[int(predictions.predicted[row])],
        confidence=float(predictions.confidences[row]),
        of_label=float(predictions.probabilities[row, label]),
        image=image,
        marked=None if explained is None or explained.pixels is None else thumbnail(explained.pixels, SIDE),
        neighbors=[(picture, one.words) for picture, one in zip(small, near, strict=True)],
    )
