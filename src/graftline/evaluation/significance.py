"""Tests of two classifiers on the same images, and what such a test could find at all.

Letters: N images; D of them discordant: the one classifier is right and the other wrong; m comparisons.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

from scipy.stats import binomtest, norm, t

ALPHA = 0.05  # chance of a false "better" that is accepted, over all comparisons together
POWER = 0.8  # Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, section 2.4


def mcnemar(won: int, lost: int) -> float:
    """Return the exact two-sided p-value of two classifiers being right equally often.

    Only the discordant images tell: if the two are equally good, each is right for half of them, so the number that one
    wins is binomial (McNemar 1947, Psychometrika 12(2); the test for comparing two classifiers on one test set that
    Dietterich 1998, Neural Computation 10(7), recommends).

    Args:
        won: images for which only the one is right.
        lost: images for which only the other is.

    >>> round(mcnemar(15, 5), 4), mcnemar(0, 0)
    (0.0414, 1.0)
    """
    discordant = won + lost
    return float(binomtest(won, discordant, 0.5).pvalue) if discordant else 1.0


def two_sided(difference: float, standard_error: float, units: int) -> float:
    """Return the p-value of a difference whose estimate is normally distributed around none.

    It is that of Student's t, with a standard error that has the share back which resampling few units leaves out.

    Args:
        difference: that was found.
        standard_error: by resampling.
        units: how many images, or groups of images, were resampled.

    >>> round(two_sided(1.96, 1.0, units=1000), 3), two_sided(0.0, 0.0, units=1000)
    (0.05, 1.0)
    >>> round(two_sided(1.96, 1.0, units=5), 3)
    0.154
    """
    if difference == 0 or units == 1:
        return 1.0
    if standard_error == 0:  # all of them differ alike: the sign test
        return float(2 * 0.5**units)
    errors = abs(difference) / standard_error
    return float(2 * t.sf(errors * math.sqrt(1 - 1 / units), units - 1))


def reach(standard_error: float, units: int, level: float = ALPHA) -> float:
    """Return how far from a difference the ends of its interval are, by Student's t: `two_sided` gives ``level`` there.

    Args:
        standard_error: by resampling.
        units: how many images, or groups of images, were resampled; two at least.
        level: of the p-value, two-sided.

    >>> round(reach(1.0, units=1000), 2), round(reach(1.0, units=5), 2)
    (1.96, 3.1)
    """
    return float(t.isf(level / 2, units - 1)) * standard_error / math.sqrt(1 - 1 / units)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for being several, so that the chance of any false find stays below a level.

    The smallest is multiplied by m, the next by m - 1, and so on (Holm 1979, Scandinavian Journal of Statistics 6(2)).

    Args:
        p_values: m of them.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = highest
    return adjusted


def critical_level(others: Sequence[float]) -> float:
    """Return the largest p-value that Holm's correction would accept as a find beside those of other comparisons.

    Args:
        others: their m - 1 p-values.

    >>> critical_level([]), critical_level([0.2, 0.001])
    (0.05, 0.025)
    """
    comparisons, found = len(others) + 1, 0
    for p_value in sorted(others):
        if p_value > ALPHA / (comparisons - found):
            break
        found += 1
    return ALPHA / (comparisons - found)


def smallest_difference(num_images: int, discordant: int, level: float = ALPHA) -> float | None:
    """Return the smallest difference in accuracy that McNemar's exact test calls one at a level.

    Args:
        num_images: N.
        discordant: D. Two classifiers that disagree more often hide larger differences.
        level: of the p-value.

    Returns:
        (won - lost) / N; None where even winning all of D would not do, as with fewer than 6 at 5 %.

    >>> round(smallest_difference(656, 80), 4), smallest_difference(656, 5)
    (0.0305, None)
    """
    more_than_half = range((discordant + 1) // 2, discordant + 1)
    number = bisect_left(more_than_half, True, key=lambda won: mcnemar(won, discordant - won) <= level)
    if number == len(more_than_half):
        return None
    return (2 * more_than_half[number] - discordant) / num_images


def findable_difference(num_images: int, discordant: int, level: float = ALPHA) -> float | None:
    """Return the true difference in accuracy that McNemar's test finds with the probability ``POWER``.

    None where that is more than the share of discordant images, which no difference exceeds.

    Solved for the difference from Connor 1987, Biometrics 43(1), equation for the size of a paired sample:
    sqrt(N) d = z_level sqrt(q) + z_power sqrt(q - d²), with q = D / N.

    Args:
        num_images: N.
        discordant: D.
        level: of the p-value, two-sided.

    >>> round(findable_difference(656, 80), 3), findable_difference(656, 6)
    (0.038, None)
    """
    share = discordant / num_images
    level_part = norm.isf(level / 2) * math.sqrt(share)
    square = float(norm.isf(1 - POWER)) ** 2
    half, scale = level_part * math.sqrt(num_images), num_images + square
    found = float(half + math.sqrt(max(0.0, half**2 - scale * (level_part**2 - square * share)))) / scale
    return found if found <= share else None
