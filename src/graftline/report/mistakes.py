"""The mistakes that a model is surest of."""

from dataclasses import dataclass
from pathlib import Path

from graftline.evaluation.predictions import Predictions
from graftline.report.thumbnails import Thumbnail, thumbnails

MOST_SHOWN = 12
SIDE = 256  # px


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
    """

    name: str
    label: str
    answer: str
    confidence: float
    of_label: float
    image: Thumbnail


def surest_mistakes(predictions: Predictions) -> list[Mistake]:
    """Return the mistakes that the model is surest of, the surest first."""
    rows = predictions.surest_mistakes[:MOST_SHOWN].tolist()
    images = thumbnails([predictions.paths[row] for row in rows], predictions.decoding, SIDE)
    return [_mistake(predictions, row, image) for row, image in zip(rows, images, strict=True)]


def _mistake(predictions: Predictions, row: int, image: Thumbnail) -> Mistake:
    label = int(predictions.labels[row])
    return Mistake(
        name=Path(predictions.paths[row]).name,
        label=predictions.class_names[label],
        answer=predictions.class_names[int(predictions.predicted[row])],
        confidence=float(predictions.confidences[row]),
        of_label=float(predictions.probabilities[row, label]),
        image=image,
    )
