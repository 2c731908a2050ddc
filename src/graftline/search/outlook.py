"""What more time would likely bring: the learning curve of the winner, carried on."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from graftline.search.ledger import format_seconds

LEAST_EPOCHS = 4  # of which the last half is carried on: from fewer, nothing is said
STALL_SHARE = 5  # a curve whose last fifth has no better epoch is at its end
FARTHEST = 5.0  # times the length of the curve: beyond, a straight line promises anything
WORTH_SAYING = 0.01  # of the log loss: a change of less than 1 % of it is called little


@dataclass(frozen=True)
class Outlook:
    """The validation log loss that the winner would likely have after more time.

    Attributes:
        log_loss: expected.
        low: lower end of the 95 % interval of the line through the last epochs.
        high: upper end; never above what is reached already.
        sentence: the same in words.
    """

    log_loss: float
    low: float
    high: float
    sentence: str


def look_ahead(
    seconds: npt.ArrayLike, losses: npt.ArrayLike, more_seconds: float, before: float = math.inf
) -> Outlook | str:
    """Carry a learning curve on, as a straight line over the logarithm of the time.

    Short of its end a loss falls about as a power of the time (Hestness et al. 2017, arXiv 1712.00409), of which a
    straight line is what the last half of the epochs can tell. It promises too much rather than too little: a curve
    bends up in the end.

    Args:
        seconds: (N,) after which each epoch was done, since the training began.
        losses: (N,) on the validation split, of each epoch.
        more_seconds: how much longer.
        before: the loss that the model had reached when this curve began, anew, as a head has before the whole network
            is trained.

    Returns:
        The outlook, or why there is none, in a sentence.
    """
    times, losses = np.asarray(seconds, np.float64), np.asarray(losses, np.float64)
    reached = np.minimum.accumulate(losses)
    if len(reached) < LEAST_EPOCHS:
        return f"What more time would bring cannot be told from {len(reached)} epochs."
    if more_seconds > FARTHEST * times[-1]:
        return (
            f"What another {more_seconds / 60:.0f} minutes would bring cannot be told from a training of "
            f"{format_seconds(float(times[-1]))}."
        )
    own_best = float(reached[-1])
    best = min(own_best, before)
    since = len(reached) - 1 - int(losses.argmin())
    more = f"Another {more_seconds / 60:.0f} minutes"
    if since >= max(2, len(reached) / STALL_SHARE):
        return (
            f"{more} of the same training would likely bring nothing: its validation log loss, {own_best:.3f}, has not "
            f"fallen for the last {since} of {len(reached)} epochs."
        )
    half = len(reached) // 2
    outlook = _line(np.log(times[half:]), reached[half:], math.log(times[-1] + more_seconds))
    expected, low, high = (min(max(value, 0.0), best) for value in outlook)
    interval = f"{expected:.3f} ({low:.3f} to {high:.3f})"
    if best - expected < WORTH_SAYING * best:
        text = f"{more} would likely bring little: validation log loss {interval}, now {best:.3f}."
    else:
        text = f"{more} would likely lower the validation log loss from {best:.3f} to {interval}."
    return Outlook(expected, low, high, text)


def _line(x: np.ndarray, y: np.ndarray, at: float) -> tuple[float, float, float]:
    """Return the value at a place of the straight line through points, and its 95 % prediction interval."""
    slope, intercept = np.polyfit(x, y, 1)
    expected = float(slope * at + intercept)
    freedom = len(x) - 2
    if freedom < 1:
        return expected, 0.0, math.inf
    residual = math.sqrt(float(((y - slope * x - intercept) ** 2).sum()) / freedom)
    spread = float(((x - x.mean()) ** 2).sum())
    error = residual * math.sqrt(1 + 1 / len(x) + (at - float(x.mean())) ** 2 / max(spread, 1e-12))
    half = float(student.ppf(0.975, freedom)) * error
    return expected, expected - half, expected + half
