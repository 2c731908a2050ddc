"""Where a model is worse: its accuracy on parts of the images, by any column of the data set and by image facts.

Letters: N images, K classes.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import hypergeom

from graftline.evaluation.bootstrap import Ints, ratio
from graftline.evaluation.metrics import Interval, accuracy_interval
from graftline.evaluation.predictions import Predictions
from graftline.evaluation.significance import holm, two_sided

FEWEST_IMAGES = 10  # of a slice and of the rest: fewer can hardly be shown to be worse
MOST_VALUES = 50  # of a column of names: those with the most images
QUARTERS = ("lowest", "lower", "higher", "highest")  # of a column of numbers
LEVEL = 0.05  # of calling any slice worse that is not

Bools = npt.NDArray[np.bool_]

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """A part of the images, by the value of a column.

    Attributes:
        column: its name.
        value: which.
        rows: (N,) the images that have it.
        others: (N,) those that have another one; of the rest nothing is known.
    """

    column: str
    value: str
    rows: Bools
    others: Bools

    def shows_others(self, groups: Ints | None) -> bool:
        """Tell whether its images are of several groups (N,), if they have any: one alone shows nothing of others."""
        return groups is None or len(np.unique(groups[self.rows])) > 1


@dataclass(frozen=True)
class Slice:
    """The images that share a value.

    Attributes:
        column: of what.
        value: which.
        images: how many.
        accuracy: with its 95 % interval (Wilson's: better than the bootstrap where images are few).
        rest: accuracy of those with another value on the same classes: their recalls, averaged over the classes of the
            slice. A class of which they have no image counts as it does in the slice.
        p_value: of being no worse than they are on the same classes, corrected for looking at all slices (Holm 1979,
            Scandinavian Journal of Statistics 6(2)). NaN where the images are of one group, which shows nothing of
            others.
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
    def is_tested(self) -> bool:
        """Whether its images show anything of others."""
        return not math.isnan(self.p_value)

    @property
    def is_worse(self) -> bool:
        """Whether the model surely is worse on these images."""
        return self.p_value < LEVEL


def score_slices(predictions: Predictions, columns: pd.DataFrame) -> list[Slice]:
    """Score a model on slices of its images; those that are worse first, then the others by accuracy.

    A slice is compared with other images of the same classes, as some classes are harder than others.

    Args:
        predictions: of N images.
        columns: (N rows) what there is to slice by; numbers are cut into quarters, names taken as they are.
    """
    hits, groups = predictions.predicted == predictions.labels, predictions.drawn_groups
    parts = cut(columns)
    compared = [_Compared(hits, predictions.labels, part) for part in parts]
    p_values, tested = np.full(len(parts), np.nan), [part.shows_others(groups) for part in parts]
    p_values[tested] = holm([one.p_value(groups) for one, is_tested in zip(compared, tested, strict=True) if is_tested])
    slices = [
        Slice(
            part.column,
            part.value,
            int(part.rows.sum()),
            accuracy_interval(hits[part.rows], None if groups is None else groups[part.rows]),
            one.expected / int(part.rows.sum()),
            p_value,
        )
        for part, one, p_value in zip(parts, compared, p_values.tolist(), strict=True)
    ]
    return sorted(slices, key=lambda one: (not one.is_worse, one.accuracy.value, one.name))


def cut(columns: pd.DataFrame) -> list[Part]:
    """Return the parts that columns (N rows) give: of each value with enough images, and enough that have another."""
    parts = []
    for column in columns:
        known = columns[column].notna().to_numpy()
        for value, rows in _values(columns[column]):
            part = Part(str(column), value, rows, known & ~rows)
            if min(part.rows.sum(), part.others.sum()) >= FEWEST_IMAGES:
                parts.append(part)
    return parts


def sentence(slices: Sequence[Slice]) -> str:
    """Say on which images the model is worse."""
    worse = [one for one in slices if one.is_worse]
    if not slices:
        return f"There is nothing to slice the images by: no value has {FEWEST_IMAGES} images, and as many others."
    number = sum(one.is_tested for one in slices)
    if number == 0:
        return f"None of {len(slices)} slices was tested: each is of one group, which shows nothing of others."
    than = "than on other images of the same classes"
    if not worse:
        return f"On none of {number} slices is the model significantly less accurate {than}."
    told = ", ".join(f"{one.name} ({100 * one.accuracy.value:.1f} %, others {100 * one.rest:.1f} %)" for one in worse)
    return f"The model is significantly less accurate on {len(worse)} of {number} slices {than}: {told}."


def _values(column: pd.Series) -> Iterator[tuple[str, Bools]]:
    """Yield the values of a column with the images (N,) that have each."""
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
    counts = counts[counts >= FEWEST_IMAGES]
    if len(counts) > MOST_VALUES:
        logger.info(f"Of {len(counts):,} values of “{column.name}”, the {MOST_VALUES} with the most images are slices.")
    values = sorted(counts.index, key=lambda value: (-counts[value], str(value)))[:MOST_VALUES]
    fractions = [value for value in values if isinstance(value, float | np.floating)]
    written = dict(zip(fractions, _written(fractions), strict=True))
    for value in sorted(values, key=str):
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


class _Compared:
    """The answers to the images of a part, beside those to the others, class by class."""

    def __init__(self, hits: Bools, labels: Ints, part: Part) -> None:
        """Count.

        Args:
            hits: (N,) whether the answer is right.
            labels: (N,) from 0 to K - 1.
            part: of the images.
        """
        self.hits, self.labels, self.part = hits, labels, part
        self.inside, self.outside = self._count(part.rows), self._count(part.others)  # (K,)
        self.right = self._count(part.rows & hits)
        self.all_right = self.right + self._count(part.others & hits)

    def _count(self, rows: Bools) -> npt.NDArray[np.int64]:
        return np.bincount(self.labels[rows], minlength=int(self.labels.max()) + 1)

    @property
    def recalls_of_others(self) -> npt.NDArray[np.float64]:
        """(K,) of each class; NaN where they have no image of it."""
        return ratio(self.all_right - self.right, self.outside)

    @property
    def expected(self) -> float:
        """How many answers in the part would be right with the recalls of the others."""
        return float(np.where(self.outside > 0, self.inside * self.recalls_of_others, self.right).sum())

    def p_value(self, groups: Ints | None) -> float:
        """Return how probable it is that a part on which the classes are no harder has as few hits.

        Args:
            groups: (N,) number of each image's group; None: each stands alone.
        """
        if self.right.sum() >= self.expected:
            return 1.0
        return self._exact() if groups is None else self._of_groups(groups)

    def _exact(self) -> float:
        """Return the p-value where each image stands alone.

        Given the counts of a class, the hits in the part are hypergeometric where it makes no difference; those of all
        classes add up. For one class that is Fisher's exact test (Birch 1964, JRSS B 26(2); Agresti 2013, Categorical
        Data Analysis, section 7.3.5).
        """
        lowest, highest = np.maximum(0, self.all_right - self.outside), np.minimum(self.inside, self.all_right)
        able = np.flatnonzero(highest > lowest)  # classes in which there can be more hits or fewer
        sizes = highest[able] - lowest[able] + 1
        classes = np.repeat(able, sizes)
        hits = np.concatenate([np.arange(lowest[one], highest[one] + 1) for one in able])
        images = self.inside + self.outside
        chances = hypergeom.pmf(hits, images[classes], self.all_right[classes], self.inside[classes])
        of_sum = reduce(np.convolve, np.split(chances, np.cumsum(sizes)[:-1]))
        return min(1.0, float(of_sum[: int((self.right - lowest).sum()) + 1].sum()))

    def _of_groups(self, groups: Ints) -> float:
        """Return the p-value where images have groups (N,), by the difference of the recalls.

        The classes are averaged as Mantel and Haenszel do (Greenland and Robins 1985, Biometrics 41(1)). In the
        standard error groups vary as wholes (Liang and Zeger 1986, Biometrika 73(1)); it is at least that of images
        which stand alone where the part makes no difference, as answers that are all wrong have no scatter. Student's t
        has as many degrees of freedom as the smaller of both sides has groups, less one: a column that is the same for
        a whole group tells as much as there are groups.
        """
        rows, others = self.part.rows, self.part.others
        images = self.inside + self.outside
        shares, pooled = ratio(self.inside, images)[self.labels], ratio(self.all_right, images)[self.labels]
        weights = np.where(rows, 1 - shares, np.where(others, -shares, 0.0))  # they sum to 0 in each class
        recalls = np.where(rows, ratio(self.right, self.inside)[self.labels], self.recalls_of_others[self.labels])
        used = weights != 0
        difference = float(weights[used] @ self.hits[used])
        scatter = np.bincount(groups[used], weights[used] * (self.hits - recalls)[used])
        alone = np.sqrt(weights[used] ** 2 @ (pooled * (1 - pooled))[used])
        units = min(len(np.unique(groups[side & used])) for side in (rows, others))
        half = two_sided(difference, max(float(np.linalg.norm(scatter)), float(alone)), units) / 2
        return half if difference < 0 else 1 - half
