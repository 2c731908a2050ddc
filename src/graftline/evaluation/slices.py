"""Where a model is worse: its accuracy on parts of the images, by any column of the data set and by image facts.

Letters: N images, S slices, G groups of images, B resamples of a chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import fisher_exact

from graftline.evaluation.bootstrap import Ints, mean_of_defined, multiplicities, ratio
from graftline.evaluation.metrics import Interval, accuracy_interval
from graftline.evaluation.predictions import Predictions
from graftline.evaluation.significance import holm, two_sided

FEWEST_IMAGES = 10  # of a slice and of the rest: fewer can hardly be shown to be worse
MOST_VALUES = (
    50  # of a column of names: one with more, such as a patient's, has no slices that could be shown to be worse
)
QUARTERS = ("lowest", "lower", "higher", "highest")  # of a column of numbers
LEVEL = 0.05  # of calling any slice worse that is not
RESAMPLES, SEED = 1000, 0  # of groups

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Slice:
    """The images that share a value.

    Attributes:
        column: of what.
        value: which.
        images: how many.
        accuracy: with its 95 % interval (Wilson's: better than the bootstrap where images are few).
        rest: accuracy on all others.
        p_value: of being no worse than the others, by Fisher's exact test, or by resampled groups where images have
            some, corrected for looking at all slices (Holm 1979, Scandinavian Journal of Statistics 6(2)).
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
    members, groups = [rows for *_, rows in found], predictions.drawn_groups
    if groups is None:
        p_values = holm([_p_value(hits, rows) for rows in members])
    else:
        p_values = holm(_p_values_of_groups(hits, members, groups) if members else [])
    slices = [
        Slice(
            column,
            value,
            int(rows.sum()),
            accuracy_interval(hits[rows], None if groups is None else groups[rows]),
            float(hits[~rows].mean()),
            p_value,
        )
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
        return f"On none of {len(slices)} slices is the model significantly less accurate than on the other images."
    told = ", ".join(f"{one.name} ({100 * one.accuracy.value:.1f} %, others {100 * one.rest:.1f} %)" for one in worse)
    return f"The model is significantly less accurate on {len(worse)} of {len(slices)} slices: {told}."


def _values(column: pd.Series) -> Iterator[tuple[str, Bools]]:
    """Yield each value of a column with the images (N,) that have it; none where there is one value, or too many."""
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > len(QUARTERS):
        cuts = np.unique(np.nanquantile(column, [0.25, 0.5, 0.75]))
        numbers = np.searchsorted(cuts, column, side="left")
        names = QUARTERS if len(cuts) == len(QUARTERS) - 1 else [f"part {part + 1}" for part in range(len(cuts) + 1)]
        for number, name in enumerate(names):
            rows = (numbers == number) & column.notna().to_numpy()
            if rows.any():
                yield f"{name} ({' to '.join(_written([column[rows].min(), column[rows].max()]))})", rows
        return
    counts = column.value_counts()
    found = counts.index[counts > 0]  # of categories, not each occurs
    if 1 < len(found) <= MOST_VALUES:
        values = sorted(found, key=str)
        fractions = [value for value in values if isinstance(value, float | np.floating)]
        written = dict(zip(fractions, _written(fractions), strict=True))
        for value in values:
            yield written.get(value, str(value)), (column == value).to_numpy(bool)


def _written(numbers: Sequence[float | np.floating]) -> list[str]:
    """Write numbers with as many digits as tell them apart: at least three, and all before the point below a million.

    >>> _written([12.16, 12.19]), _written([1990, 2021.0]), _written([0.5, 1234567.0])
    (['12.16', '12.19'], ['1990', '2021'], ['0.5', '1.23e+06'])
    """
    exact = [float(number) for number in numbers]
    written = ([_with_digits(number, digits) for number in exact] for digits in range(3, 18))  # 17 tell any two apart
    return next(names for names in written if len(set(names)) >= len(set(exact)))


def _with_digits(number: float, digits: int) -> str:
    whole = len(f"{abs(number):.0f}") if abs(number) < 1e6 else 0  # digits before the point
    return f"{number:.{max(digits, whole)}g}"


def _p_value(hits: Bools, rows: Bools) -> float:
    """Return how probable it is that a slice of no worse images has as few hits."""
    inside, outside = hits[rows], hits[~rows]
    counts = [[inside.sum(), (~inside).sum()], [outside.sum(), (~outside).sum()]]
    return float(fisher_exact(counts, alternative="less").pvalue)


def _p_values_of_groups(hits: Bools, slices: Sequence[Bools], groups: Ints) -> list[float]:
    """Return the same of each slice by the difference of its accuracy from the others', for images that have groups.

    Its standard error is that of resampled groups; Student's t has as many degrees of freedom as the smaller of both
    sides has groups, less one: a column that is the same for a whole group tells as much as there are groups.

    Args:
        hits: (N,) whether the answer is right.
        slices: S times (N,) whether the image is in it.
        groups: (N,) number of each image's group.
    """
    num_groups = int(groups.max()) + 1

    def of_groups(chosen: Sequence[Bools]) -> np.ndarray:
        """Return how many of the images (S, G) are chosen, by their groups."""
        return np.array([np.bincount(groups[rows], minlength=num_groups) for rows in chosen], np.float64)

    inside, outside = of_groups(slices), of_groups([~rows for rows in slices])
    right, others = of_groups([hits & rows for rows in slices]), of_groups([hits & ~rows for rows in slices])
    drawn = []  # each (S, B); NaN where a resample has no image of a side
    for counts in multiplicities(num_groups, RESAMPLES, SEED):
        times = counts.astype(np.float64)  # (G, B)
        drawn.append(ratio(right @ times, inside @ times) - ratio(others @ times, outside @ times))
    differences = ratio(right.sum(axis=1), inside.sum(axis=1)) - ratio(others.sum(axis=1), outside.sum(axis=1))
    resampled = np.concatenate(drawn, axis=1)
    errors = np.sqrt(mean_of_defined((resampled - mean_of_defined(resampled)[:, None]) ** 2))
    units = np.minimum(np.count_nonzero(inside, axis=1), np.count_nonzero(outside, axis=1))
    found = []
    for difference, error, count in zip(differences.tolist(), errors.tolist(), units.tolist(), strict=True):
        half = two_sided(difference, error, count) / 2
        found.append(half if difference < 0 else 1 - half)
    return found
