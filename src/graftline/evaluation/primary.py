"""The score that decides: whether a challenger has proved itself on it.

Letters: N images, R resamples.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from graftline.errors import UserError
from graftline.evaluation.bootstrap import brier_terms, log_losses, multiplicities, normalized
from graftline.evaluation.comparison import Metric, format_difference
from graftline.evaluation.gate_guards import Compared, Guard
from graftline.evaluation.metrics import (
    HEADLINES,
    LOWER_IS_BETTER,
    Interval,
    format_score,
    percentile_interval,
    resampled_scores,
    widened,
)
from graftline.evaluation.predictions import Predictions
from graftline.evaluation.significance import reach

Floats = npt.NDArray[np.float64]
Rule = Literal["better", "not_worse"]

# Of fewer images or groups not even all can show with 95 % confidence that one model is better: 0.5 ** 5 is more than
# 0.025 (sign test, two-sided).
FEWEST_COMPARED = 6


def primary_guard(
    metric: Metric,
    rule: Rule,
    margin: float,
    least_margin: float,
    floor: float | None,
    resamples: int,
    seed: int,
    compared: Compared,
) -> Guard:
    """Return the guard on the score that decides; the arguments are those of `Gate`.

    The difference is that of the same resamples for both, which takes out what makes an image hard for both. Its
    interval is such that a model that is equally good passes its worse end by chance once in forty times or less (see
    `_interval`). With ``not_worse`` the score itself may be no worse either, or many models that each are a little
    worse would follow on one another ("biocreep", D'Agostino et al. 2003, Statistics in Medicine 22(2)).

    Raises:
        UserError: the images do not define the metric.
    """
    if (broken := _broken(HEADLINES[metric], compared)) is not None:
        return broken
    ours, spread = _score(metric, compared.challenger_given, resamples, seed)
    theirs, other_spread = _score(metric, compared.champion_given, resamples, seed)
    given = compared.challenger_given
    difference = _interval(ours - theirs, spread - other_spread, given.num_drawn)
    score = widened(metric, _interval(ours, spread, given.num_drawn), given)
    is_first = compared.champion.facts is None
    reason = _too_few(given.num_drawn, grouped=given.drawn_groups is not None) or _why_not(
        metric, "better" if is_first else rule, margin, least_margin, difference, theirs, compared.champion.name
    )
    if not reason and floor is not None:
        reason = _below_floor(metric, floor, score)
    return Guard(
        name=HEADLINES[metric],
        champion=format_score(metric, theirs),
        challenger=format_score(metric, ours),
        difference=format_difference(metric, difference).removesuffix(" points"),
        passed=not reason,
        reason=reason,
        figures=(difference.value, difference.low, difference.high),
    )


def _broken(name: str, compared: Compared) -> Guard | None:
    """Return the guard on a model whose answers are no numbers, which no score can be had of; None: there is none."""
    challenger, champion = (
        int((~np.isfinite(probabilities)).any(axis=1).sum())
        for probabilities in (compared.challenger.probabilities, compared.champion_given.probabilities)
    )
    if not challenger and not champion:
        return None
    of = f"of {len(compared.images.paths):,} test images"
    reason = f"It gives probabilities that are not numbers for {challenger:,} {of}: its training has diverged."
    if not challenger:
        reason = (
            f"{compared.champion.name} gives probabilities that are not numbers for {champion:,} {of}: "
            "force the promotion with a reason, if it is meant to replace it."
        )
    theirs, ours = ("not a number" if number else "" for number in (champion, challenger))
    return Guard(name, theirs, ours, difference="", passed=False, reason=reason)


def _interval(value: float, spread: Floats, units: int) -> Interval:
    """Return a value with its 95 % interval, of R resamples of so many images or groups.

    Its ends are those of the percentiles (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13) or
    of Student's t, whichever is farther. By the percentiles alone an equally good model passed for better in 9 to 10 of
    100 simulated cases with 6 units, in 6 to 8 with 10, in 4 with 30; by both in 1 to 3 with any number.
    """
    found = percentile_interval(np.asarray(value), spread)
    if units < FEWEST_COMPARED:  # nothing is decided by it
        return found
    far = reach(float(np.nanstd(spread, ddof=1)), units)
    return replace(found, low=min(found.low, value - far), high=max(found.high, value + far))


def _too_few(units: int, *, grouped: bool) -> str:
    """Return that images, or groups of them, are too few for a decision; empty if they are not.

    >>> _too_few(6, grouped=False), _too_few(1, grouped=False).partition(":")[0]
    ('', '1 test image cannot show which model is better, 6 are the fewest')
    >>> _too_few(4, grouped=True).partition(":")[0]
    '4 groups of test images cannot show which model is better, 6 are the fewest'
    """
    if units >= FEWEST_COMPARED:
        return ""
    some = f"{units} groups of test images" if grouped else f"{units} test image{'s' if units > 1 else ''}"
    return (
        f"{some} cannot show which model is better, {FEWEST_COMPARED} are the fewest: add "
        f"{'groups' if grouped else 'images'}, or force the promotion with a reason."
    )


def _score(metric: Metric, predictions: Predictions, resamples: int, seed: int) -> tuple[float, Floats]:
    """Return a score, and that of resamples (R,), which for the same seed are the same for all models.

    Raises:
        UserError: the images do not define it.
    """
    terms = _terms(metric, predictions)
    if terms is not None:  # a mean over images: the other scores would take most of the time
        chunks = multiplicities(len(terms), resamples, seed, predictions.drawn_groups)
        return float(terms.mean()), np.concatenate([terms @ counts / counts.sum(axis=0) for counts in chunks])
    values, spread = resampled_scores(predictions, resamples, seed, auroc=metric == "auroc")
    if metric not in values or np.isnan(values[metric]):
        raise UserError(
            f"These {len(predictions.labels):,} images define no {HEADLINES[metric]}: take another Gate.metric."
        )
    return float(values[metric]), spread[metric]


def _terms(metric: Metric, predictions: Predictions) -> Floats | None:
    """Return the numbers (N,) that a score is the mean of, None for one that is no mean."""
    terms: Floats | None = None
    if metric == "accuracy":
        terms = (predictions.predicted == predictions.labels).astype(np.float64)
    elif metric in ("log_loss", "brier"):
        of = log_losses if metric == "log_loss" else brier_terms
        terms = of(normalized(predictions.probabilities), predictions.labels)
    return terms


def _why_not(
    metric: Metric, rule: Rule, margin: float, least_margin: float, difference: Interval, theirs: float, name: str
) -> str:
    """Return why a challenger has not proved itself; empty if it has."""
    lower = metric in LOWER_IS_BETTER
    worse, worst = (difference.value, difference.high) if lower else (-difference.value, -difference.low)
    told = f"the {HEADLINES[metric]} differs by {format_difference(metric, difference)}"
    if rule == "better":
        return "" if worst < 0 else f"It is not shown to be better than {name}: {told}."
    allowed = max(margin * (theirs if lower else 1 - theirs), least_margin)
    if not worse <= 0:  # also what is not a number
        return f"It is not as good as {name}: {told}."
    if not worst <= allowed:
        what = format_difference(metric, Interval(allowed, allowed, allowed)).split(" [")[0]
        return f"It may be worse than {name} by more than the margin of {what.lstrip('+')}: {told}."
    return ""


def _below_floor(metric: Metric, floor: float, score: Interval) -> str:
    lower = metric in LOWER_IS_BETTER
    reached = score.high <= floor if lower else score.low >= floor
    ends = f"{format_score(metric, score.low)} to {format_score(metric, score.high)}"
    return "" if reached else f"It does not surely reach the floor of {format_score(metric, floor)}: {ends}."
