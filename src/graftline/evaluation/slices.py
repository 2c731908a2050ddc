"""Where a model is worse: its accuracy on parts of the images, by any column of the data set and by image facts.

Letters: N images, S slices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest, fisher_exact

from graftline.evaluation.metrics import Interval
from graftline.evaluation.predictions import Predictions
from graftline.evaluation.significance import holm

FEWEST_IMAGES = 10  # of a slice and of the rest: fewer can hardly be shown to be worse
MOST_VALUES = (
    50  # of a column of names: one with more, such as a patient's, has no slices that could be shown to be worse
)
QUARTERS = ("lowest", "lower", "higher", "highest")  # of a column of numbers
LEVEL = 0.05  # of calling any slice worse that is not

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Slice:
    """The images that share a value.

    Attributes:
        column: of what.
        value: which.
        images: how many.
        accuracy: with its 95 % interval (Wilson 1927, JASA 22; better than the bootstrap where images are few).
        rest: accuracy on all others.
        p_value: of being no worse than the others, by Fisher's exact test, corrected for looking at all slices (Holm
            1979, Scandinavian Journal of Statistics 6(2)).
    """

    column: str
    value: str
    images: int
    accuracy: Interval
    rest: float
    p_value: float

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"{self.column} {self.value}"

    @property
    def is_worse(self) -> bool:
        """Whether the model surely is worse on these images."""
        return self.p_value < LEVEL


def score_slices(predictions: Predictions, columns: pd.DataFrame) -> list[Slice]:
    """Score a model on slices of its images; those that are worse first, then the others by accuracy.

    Args:
        predictions: of N images.
        columns: (N rows) what there is to slice by; numbers are cut into quarters, names taken as they are. A column
            with one value, or with too many, is left out, and so are slices of few images.
    """
    hits = predictions.predicted == predictions.labels
    found = cut(columns)
    p_values = holm([_p_value(hits, rows) for _, _, rows in found])
    slices = [
        Slice(column, value, int(rows.sum()), _accuracy(hits[rows]), float(hits[~rows].mean()), p_value)
        for (column, value, rows), p_value in zip(found, p_values, strict=True)
    ]
    return sorted(slices, key=lambda one: (not one.is_worse, one.accuracy.value, one.name))


def cut(columns: pd.DataFrame) -> list[tuple[str, str, Bools]]:
    """Return the slices that columns (N rows) give: the column, the value, and the images (N,) that have it."""
    return [
        (str(column), value, rows)
        for column in columns
        for value, rows in _values(columns[column])
        if min(rows.sum(), (~rows).sum()) >= FEWEST_IMAGES
    ]


def sentence(slices: Sequence[Slice]) -> str:
    """Say on which images the model is worse."""
    worse = [one for one in slices if one.is_worse]
    if not slices:
        return "There is nothing to slice the images by: all columns have one value, or too many."
    if not worse:
        return f"On none of {len(slices)} slices is the model surely worse than on the other images."
    told = ", ".join(f"{one.name} ({100 * one.accuracy.value:.1f} %, others {100 * one.rest:.1f} %)" for one in worse)
    return f"Surely worse, of {len(slices)} slices that were looked at: {told}."


def _values(column: pd.Series) -> Iterator[tuple[str, Bools]]:
    """Yield each value of a column with the images (N,) that have it; none where there is one value, or too many."""
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > len(QUARTERS):
        cuts = np.unique(np.nanquantile(column, [0.25, 0.5, 0.75]))
        numbers = np.searchsorted(cuts, column, side="left")
        names = QUARTERS if len(cuts) == len(QUARTERS) - 1 else [f"part {part + 1}" for part in range(len(cuts) + 1)]
        for number, name in enumerate(names):
            rows = (numbers == number) & column.notna().to_numpy()
            if rows.any():
                yield f"{name} ({column[rows].min():.3g} to {column[rows].max():.3g})", rows
        return
    counts = column.value_counts()
    found = counts.index[counts > 0]  # of categories, not each occurs
    if 1 < len(found) <= MOST_VALUES:
        for value in sorted(found, key=str):
            name = f"{value:.3g}" if isinstance(value, float) else str(value)
            yield name, (column == value).to_numpy(bool)


def _accuracy(hits: Bools) -> Interval:
    test = binomtest(int(hits.sum()), len(hits))
    interval = test.proportion_ci(method="wilson")
    return Interval(float(hits.mean()), float(interval.low), float(interval.high))


def _p_value(hits: Bools, rows: Bools) -> float:
    """Return how probable it is that a slice of no worse images has as few hits."""
    inside, outside = hits[rows], hits[~rows]
    counts = [[inside.sum(), (~inside).sum()], [outside.sum(), (~outside).sum()]]
    return float(fisher_exact(counts, alternative="less").pvalue)
