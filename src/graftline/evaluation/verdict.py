"""What may be said of differences between classifiers and one that they are compared with, on the same images.

Letters: N images, R classifiers, the first of which is the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graftline.evaluation.bootstrap import Ints
from graftline.evaluation.metrics import LOWER_IS_BETTER, Interval
from graftline.evaluation.significance import (
    ALPHA,
    critical_level,
    findable_difference,
    holm,
    mcnemar,
    smallest_difference,
    two_sided,
)

ComparisonVerdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class PairedTest:
    """The test of a classifier against the reference.

    Attributes:
        won: images for which only it is right.
        lost: images for which only the reference is.
        p_value: of no difference in the score that is judged: McNemar's for the accuracy, for others, and where images
            have groups, by the spread of the resamples.
        corrected_p_value: with Holm's correction for all comparisons.
        level: p-value that would still have been called a difference, beside those of the other comparisons.
        verdict: what can be said.
    """

    won: int
    lost: int
    p_value: float
    corrected_p_value: float
    level: float
    verdict: ComparisonVerdict


def judge(
    metric: str, differences: Sequence[Interval], discordant: Sequence[tuple[int, int]], p_values: Sequence[float]
) -> list[PairedTest]:
    """Judge several classifiers beside one, corrected for their number.

    One is called better or worse only if its corrected p-value is at most 5 % and the interval leaves out 0.

    Args:
        metric: the score that is judged.
        differences: how much more of it each has than the reference, with the paired interval.
        discordant: images that each won and lost.
        p_values: of no difference.

    >>> [one.verdict for one in judge("accuracy", [Interval(0.02, 0.01, 0.03)] * 2, [(9, 1)] * 2, [0.02, 0.04])]
    ['better', 'better']
    >>> [one.verdict for one in judge("accuracy", [Interval(0.02, 0.01, 0.03)] * 2, [(9, 1)] * 2, [0.03, 0.04])]
    ['no difference shown', 'no difference shown']
    """
    corrected = holm(p_values)
    return [
        PairedTest(
            won=won,
            lost=lost,
            p_value=p_values[place],
            corrected_p_value=corrected[place],
            level=critical_level([*p_values[:place], *p_values[place + 1 :]]),
            verdict=_verdict(metric, differences[place], corrected[place]),
        )
        for place, (won, lost) in enumerate(discordant)
    ]


def _verdict(metric: str, difference: Interval, corrected_p_value: float) -> ComparisonVerdict:
    if corrected_p_value > ALPHA or difference.low <= 0 <= difference.high:
        return "no difference shown"
    return "better" if (difference.value > 0) != (metric in LOWER_IS_BETTER) else "worse"


def judge_accuracies(
    hits: np.ndarray, gains: Sequence[Interval], spread: np.ndarray, groups: Ints | None
) -> list[PairedTest]:
    """Judge the accuracies of all classifiers but the first, beside the first one's.

    Args:
        hits: (R, N) bool, for which images each is right.
        gains: R of them, in accuracy over the first.
        spread: (R,) standard errors of the gains.
        groups: (N,) of the images, which are resampled; None: each image stands alone, and McNemar's test tells.
    """
    first, *others = hits
    discordant = [(int((one & ~first).sum()), int((first & ~one).sum())) for one in others]
    if groups is None:
        p_values = [mcnemar(*pair) for pair in discordant]
    else:
        drawn, units = zip(gains[1:], spread[1:].tolist(), strict=True), int(groups.max()) + 1
        p_values = [two_sided(gain.value, error, units) for gain, error in drawn]
    return judge("accuracy", gains[1:], discordant, p_values)


def accuracy_notes(tests: Sequence[PairedTest], num_images: int, groups: Ints | None = None) -> list[str]:
    """Return what a reader must know before believing verdicts on accuracies, in sentences.

    Args:
        tests: what `judge_accuracies` returned.
        num_images: N.
        groups: as it was given; what differences images show that are alike is not known.
    """
    pairs = [(one.won + one.lost, one.level) for one in tests]
    power = [power_note(num_images, pairs)] if pairs and groups is None else []
    return power + holm_note(len(tests))


def power_note(num_images: int, pairs: Sequence[tuple[int, float]]) -> str:
    """Say what differences in accuracy as many images show at all.

    Args:
        num_images: N.
        pairs: number of discordant images, and p-value that is a difference, of each comparison.

    >>> power_note(656, [(80, 0.05)])
    '656 images show differences in accuracy of 3.0 points or more, and a true one of 3.8 points four times in five.'
    """
    able = [(least, pair) for pair in pairs if (least := smallest_difference(num_images, *pair)) is not None]
    findable = [found for _, pair in able if (found := findable_difference(num_images, *pair)) is not None]
    images = f"{num_images:,} images"
    if not able:
        return f"{images} show no difference in accuracy at all between models that agree about nearly all of them."
    told = f", and a true one of {_range(findable)} points four times in five" if findable else ""
    return f"{images} show differences in accuracy of {_range([least for least, _ in able])} points or more{told}."


def holm_note(comparisons: int) -> list[str]:
    """Say that p-values are corrected for the number of comparisons, where they are."""
    return [f"The p-values are corrected for {comparisons} comparisons (Holm)."] if comparisons > 1 else []


def _range(shares: Sequence[float]) -> str:
    """Write the ends of some shares as points of a per cent.

    >>> _range([0.0261, 0.0304]), _range([0.026])
    ('2.6 to 3.0', '2.6')
    """
    low, high = f"{100 * min(shares):.1f}", f"{100 * max(shares):.1f}"
    return low if low == high else f"{low} to {high}"
