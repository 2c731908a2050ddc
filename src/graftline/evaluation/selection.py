"""Which members make an ensemble: chosen on validation images, within a time.

Letters: M members, N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from graftline.bundle.grid import log_softmax
from graftline.errors import UserError

ROUNDS = 50  # of adding a member: shares are then as fine as 2 %


@dataclass(frozen=True)
class Selection:
    """Which members were chosen.

    Attributes:
        shares: (M,) of each member in the mean; they sum to 1, those that were left out have 0.
        loss: log loss of the mean on the validation images, nats.
        alone: (M,) log loss of each member by itself.
        best: the number of the member that is best by itself.
    """

    shares: tuple[float, ...]
    loss: float
    alone: tuple[float, ...]
    best: int

    @property
    def chosen(self) -> list[int]:
        """The numbers of the members that have a share."""
        return [number for number, share in enumerate(self.shares) if share > 0]


def select_all(logits: np.ndarray, labels: np.ndarray) -> Selection:
    """Give every member the same share.

    Args:
        logits: (M, N, K) of the validation images.
        labels: (N,).
    """
    true = _true_probabilities(logits, labels)
    return _selection(true, np.ones(len(true)))


def select_last(logits: np.ndarray, labels: np.ndarray) -> Selection:
    """Give all the share to the last member, and call the best of the others the best; arguments as for the others."""
    true = _true_probabilities(logits, labels)
    selection = _selection(true, np.eye(len(true))[-1])
    return replace(selection, best=int(np.argmin(selection.alone[:-1])))


def select_greedily(
    logits: np.ndarray, labels: np.ndarray, milliseconds: Sequence[float], budget: float | None = None
) -> Selection:
    """Add members, also the same again, each time the one that lowers the log loss of the mean most.

    Caruana et al. 2004, "Ensemble Selection from Libraries of Models", section 2: forward selection with replacement,
    of which the best ensemble on the way is kept. There is no limit to how often a member is taken, only to how many
    rounds there are.

    Args:
        logits: (M, N, K) of the validation images.
        labels: (N,).
        milliseconds: (M,) per image and member. A member that is taken again costs nothing.
        budget: milliseconds per image that the ensemble may take; None: any.

    Raises:
        UserError: no member is as fast as the budget asks.
    """
    true = _true_probabilities(logits, labels)
    times = np.asarray(milliseconds)
    if budget is not None and times.min() > budget:
        raise UserError(
            f"An ensemble of {budget:g} ms per image cannot be: the fastest member alone takes {times.min():.1f} ms "
            "here; allow more, or take fewer crops."
        )
    counts, sums = np.zeros(len(true), dtype=int), np.zeros(true.shape[1])
    best_loss, best_counts = np.inf, counts
    for size in range(1, ROUNDS + 1):
        losses = -np.log((sums + true) / size).mean(axis=1)  # (M,) with each member added
        if budget is not None:
            spent = times[counts > 0].sum() + np.where(counts > 0, 0.0, times)
            losses[spent > budget] = np.inf
        chosen = int(losses.argmin())
        counts = counts + np.eye(len(true), dtype=int)[chosen]
        sums = sums + true[chosen]
        if losses[chosen] < best_loss - 1e-9:  # a larger ensemble of the same loss is no better
            best_loss, best_counts = losses[chosen], counts
    return _selection(true, best_counts)


def _true_probabilities(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the probability (M, N) that each member gives to the true class, not 0."""
    found = np.exp(log_softmax(logits)[:, np.arange(len(labels)), labels])
    true: np.ndarray = np.maximum(found, np.finfo(np.float64).eps)
    return true


def _selection(true: np.ndarray, counts: np.ndarray) -> Selection:
    shares = counts / counts.sum()
    alone = -np.log(true).mean(axis=1)
    loss = float(-np.log(shares @ true).mean())
    return Selection(tuple(shares.tolist()), loss, tuple(alone.tolist()), int(alone.argmin()))
