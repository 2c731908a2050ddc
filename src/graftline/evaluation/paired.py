"""How much more often one of two models is right on the same images, and how sure that is.

Letters: N images, G groups of them.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from graftline.evaluation.bootstrap import Ints
from graftline.evaluation.metrics import NORMAL_QUANTILE, Interval
from graftline.evaluation.significance import reach

Bools = npt.NDArray[np.bool_]


def family_quantile(alpha: float, size: int) -> float:
    """Return the standard errors to each side of a difference, so that all of a family hold at once.

    One-sided, for what can only speak against a model; alpha is divided by their number (Bonferroni; Dunn 1961, JASA
    56).

    >>> round(family_quantile(0.05, 1), 3), round(family_quantile(0.05, 20), 3)
    (1.645, 2.807)
    """
    return float(norm.isf(alpha / max(1, size)))


def accuracy_difference(right: Bools, other_right: Bools, quantile: float, groups: Ints | None = None) -> Interval:
    """Return how much more often the first is right, with an interval of so many standard errors to each side.

    The value is the plain difference. The interval adds one image to both kinds of discordant ones, which makes it
    about right with ten images as with ten thousand (Bonett and Price 2012, J. Educ. Behav. Stat. 37(4)).

    Of images in groups it adds a group of average size to both kinds, and takes the standard error of the groups' sums
    (Cochran 1977, Sampling Techniques, section 9A.2) with Student's t. One group alone shows nothing.

    Args:
        right: (N,) whether the first is.
        other_right: (N,) whether the second is.
        quantile: see ``family_quantile``.
        groups: (N,) number of each image's group; None: each stands alone.

    >>> import numpy as np
    >>> one, two = np.array([True] * 90 + [False] * 10), np.array([True] * 95 + [False] * 5)
    >>> [round(part, 3) for part in vars(accuracy_difference(one, two, 1.96)).values()]
    [-0.05, -0.099, 0.001]
    >>> [round(part, 3) for part in vars(accuracy_difference(one, two, 1.96, np.arange(100) // 5)).values()]
    [-0.05, -0.213, 0.122]
    """
    differences = right.astype(np.int64) - other_right
    value = float(differences.mean())
    units = np.arange(len(right)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(units)  # (G,)
    if groups is not None and len(sizes) == 1:
        return Interval(value, -1.0, 1.0)
    average = len(right) / len(sizes)
    sums = np.append(np.bincount(units, weights=differences), [average, -average])  # (G + 2,)
    sizes = np.append(sizes, [average, average])
    middle = float(sums.sum() / sizes.sum())
    error = math.sqrt(((sums - middle * sizes) ** 2).sum()) / float(sizes.sum())
    far = quantile * error if groups is None else reach(error, len(sizes) - 2, 2 * float(norm.sf(quantile)))
    return Interval(value, max(-1.0, middle - far), min(1.0, middle + far))


def widened_difference(interval: Interval, right: Bools, other_right: Bools, groups: Ints | None = None) -> Interval:
    """Return the interval of a difference in accuracy, or that of `accuracy_difference` at 95 % if it has no width.

    Two models that agree about every image differ in no resample, which does not show that they never do.

    Args:
        interval: by resampling.
        right: as for `accuracy_difference`, as are the next two.
        other_right: see there.
        groups: see there.
    """
    if interval.low < interval.high:
        return interval
    return accuracy_difference(right, other_right, NORMAL_QUANTILE, groups)


def from_resamples(value: float, drawn: npt.NDArray[np.float64], quantile: float) -> Interval:
    """Return a difference with an interval of so many standard errors to each side, which its resamples (R,) give.

    Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 12.4.
    """
    reach = quantile * float(np.nanstd(drawn, ddof=1))
    return Interval(value, value - reach, value + reach)


def measure_in_turns(timed: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """Return the smallest of several measured times of each thing, taken in turns: what disturbs one disturbs all.

    The smallest is what the machine can do, as in Python's own ``timeit``.
    """
    times = [[measure() for measure in timed] for _ in range(rounds)]
    return [min(column) for column in zip(*times, strict=True)]
