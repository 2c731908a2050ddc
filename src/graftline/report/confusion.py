"""The confusions of an evaluation, each with some of its images.

Letters: N images, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from graftline.console import track
from graftline.evaluation.predictions import Predictions
from graftline.report.thumbnails import Thumbnail, thumbnails

MOST_IN_MATRIX = 20  # classes; of more, the most frequent confusions are listed
MOST_LISTED = 40  # confusions
MOST_PER_CELL, MOST_WRONG = 24, 400  # images of a confusion, and about so many of all: 2 MB
MOST_PER_CLASS = 8  # images that are classified rightly
SIDE = 144  # px of a thumbnail
LEVELS = 5  # of shading


@dataclass(frozen=True)
class Shown:
    """An image of a cell.

    Attributes:
        row: its number in the predictions.
        name: of its file.
        confidence: probability of the class that was answered.
        thumbnail: the image; None before it is read.
    """

    row: int
    name: str
    confidence: float
    thumbnail: Thumbnail | None = None


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix.

    Attributes:
        label: name of the true class.
        answer: name of the class that was answered.
        count: images.
        share: of the images of the class.
        level: of its shading, 0 to 5.
        is_right: whether it is on the diagonal.
        anchor: of its images on the page; empty where it has none there.
        back: images of the answered class that are taken for this one.
        images: that are shown.
    """

    label: str
    answer: str
    count: int
    share: float
    level: int
    is_right: bool
    anchor: str
    back: int
    images: Sequence[Shown] = ()


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix, as the page shows it.

    Attributes:
        class_names: K names.
        totals: images of each class.
        rows: of cells; empty where there are too many classes.
        wrong: confusions with images, the most frequent first.
        right: classes with images that are classified rightly.
        num_wrong: images that are classified wrongly.
        num_confusions: cells beside the diagonal that have images.
    """

    class_names: Sequence[str]
    totals: Sequence[int]
    rows: Sequence[Sequence[Cell]]
    wrong: Sequence[Cell]
    right: Sequence[Cell]
    num_wrong: int
    num_confusions: int


def confusion(predictions: Predictions) -> Confusion:
    """Return the confusions with thumbnails of the surest mistakes, and of the least sure right answers.

    Args:
        predictions: of N images and K classes.
    """
    num_classes = len(predictions.class_names)
    counts = _counts(predictions)
    confused = _by_frequency(counts)
    in_matrix = num_classes <= MOST_IN_MATRIX
    places = confused if in_matrix else confused[:MOST_LISTED]
    on_diagonal = [(one, one) for one in range(num_classes) if in_matrix and counts[one, one]]
    wrong = [_cell(predictions, counts, *place) for place in places]
    right = [_cell(predictions, counts, *place) for place in on_diagonal]
    shown = _shares([one.count for one in wrong])
    chosen = {
        **_choose(predictions, dict(zip(places, shown, strict=True)), surest=True),
        **_choose(predictions, dict.fromkeys(on_diagonal, MOST_PER_CLASS)),
    }
    read = _read(predictions, [row for rows in chosen.values() for row in rows])
    wrong = [
        replace(one, images=[read[row] for row in chosen[place]]) for one, place in zip(wrong, places, strict=True)
    ]
    right = [
        replace(one, images=[read[row] for row in chosen[place]]) for one, place in zip(right, on_diagonal, strict=True)
    ]
    return Confusion(
        class_names=predictions.class_names,
        totals=counts.sum(axis=1).tolist(),
        rows=matrix_cells(predictions),
        wrong=wrong,
        right=right,
        num_wrong=int(counts.sum() - np.trace(counts)),
        num_confusions=len(confused),
    )


def matrix_cells(predictions: Predictions) -> list[list[Cell]]:
    """Return the cells of the confusion matrix row by row; none where there are too many classes."""
    counts = _counts(predictions)
    numbers = range(len(counts) if len(counts) <= MOST_IN_MATRIX else 0)
    return [[_cell(predictions, counts, row, column) for column in numbers] for row in numbers]


def most_confused(predictions: Predictions, most: int) -> list[Cell]:
    """Return the most frequent confusions."""
    counts = _counts(predictions)
    return [_cell(predictions, counts, *place) for place in _by_frequency(counts)[:most]]


def _counts(predictions: Predictions) -> np.ndarray:
    """Return how many images of each class (K rows) are answered with which (K columns)."""
    num_classes = len(predictions.class_names)
    pairs = predictions.labels * num_classes + predictions.predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _by_frequency(counts: np.ndarray) -> list[tuple[int, int]]:
    """Return row and column of the confusions that occur, the most frequent first."""
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[: int((mistakes > 0).sum())].tolist()
    return [divmod(one, len(counts)) for one in order]


def _cell(predictions: Predictions, counts: np.ndarray, row: int, column: int) -> Cell:
    count, names = int(counts[row, column]), predictions.class_names
    share = count / max(1, int(counts[row].sum()))
    # the square root lifts rare mistakes out of the paper's white
    level = int(np.ceil(LEVELS * (share if row == column else np.sqrt(share))))
    anchor = f"images-{row}-{column}" if count else ""
    return Cell(names[row], names[column], count, share, level, row == column, anchor, int(counts[column, row]))


def _shares(counts: Sequence[int]) -> list[int]:
    """Return how many images of each confusion are shown: its share of all that are, one at least.

    >>> _shares([30, 2]), _shares([900, 90, 9, 1])
    ([24, 2], [24, 24, 4, 1])
    """
    part = min(1.0, MOST_WRONG / max(1, sum(counts)))
    return [min(int(np.ceil(part * count)), MOST_PER_CELL) for count in counts]


def _choose(
    predictions: Predictions, places: Mapping[tuple[int, int], int], *, surest: bool = False
) -> dict[tuple[int, int], list[int]]:
    """Return the rows of so many of the surest, or of the least sure, images of each cell."""
    order = np.argsort(-predictions.confidences if surest else predictions.confidences, kind="stable")
    labels, answers = predictions.labels[order], predictions.predicted[order]
    return {
        (row, column): order[np.flatnonzero((labels == row) & (answers == column))[:most]].tolist()
        for (row, column), most in places.items()
    }


def _read(predictions: Predictions, rows: Sequence[int]) -> dict[int, Shown]:
    small = thumbnails([predictions.paths[row] for row in rows], predictions.decoding, SIDE)
    shown = track(small, "Images for the report", len(rows))
    return {
        row: Shown(row, Path(predictions.paths[row]).name, float(predictions.confidences[row]), one)
        for row, one in zip(rows, shown, strict=True)
    }
