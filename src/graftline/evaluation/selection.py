"""Which members make an ensemble: chosen on validation images, within a time.

Letters: M members, N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from graftline.bundle.grid import Average, log_softmax, true_log_probabilities
from graftline.errors import UserError

ROUNDS = 50  # of adding a member: shares are then as fine as 2 %
LEAST_SHARE = 0.01  # of a weighted average: a member with less costs its time for nothing
SMALLEST = float(np.finfo(np.float64).eps)  # probability, as scikit-learn's log_loss clips


@dataclass(frozen=True)
class Selection:
    """Which members were chosen.

    Attributes:
        shares: (M,) of each member in the average; they sum to 1, those that were left out have 0.
        loss: log loss of the average on the validation images, nats.
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


def select_all(logits: np.ndarray, labels: np.ndarray, average: Average = "probabilities") -> Selection:
    """Give every member the same share.

    Args:
        logits: (M, N, K) of the validation images.
        labels: (N,).
        average: what of the members is averaged.
    """
    answers = _Answers.of(logits, labels, average)
    return answers.selection(np.ones(len(logits)))


def select_last(logits: np.ndarray, labels: np.ndarray) -> Selection:
    """Give all the share to the last member, and call the best of the others the best; arguments as for the others."""
    selection = _Answers.of(logits, labels, "probabilities").selection(np.eye(len(logits))[-1])
    return replace(selection, best=int(np.argmin(selection.alone[:-1])))


def select_greedily(
    logits: np.ndarray,
    labels: np.ndarray,
    milliseconds: Sequence[float],
    budget: float | None = None,
    average: Average = "probabilities",
) -> Selection:
    """Add members, also the same again, each time the one that lowers the log loss of the average most.

    Caruana et al. 2004, "Ensemble Selection from Libraries of Models", section 2: forward selection with replacement,
    of which the best ensemble on the way is kept. There is no limit to how often a member is taken, only to how many
    rounds there are.

    Args:
        logits: (M, N, K) of the validation images.
        labels: (N,).
        milliseconds: (M,) per image and member. A member that is taken again costs nothing.
        budget: milliseconds per image that the ensemble may take; None: any.
        average: what of the members is averaged.

    Raises:
        UserError: no member is as fast as the budget asks.
    """
    answers, times = _Answers.of(logits, labels, average), np.asarray(milliseconds)
    if budget is not None and times.min() > budget:
        raise UserError(
            f"An ensemble of {budget:g} ms per image cannot be: the fastest member alone takes {times.min():.1f} ms "
            "here; allow more, or take fewer crops."
        )
    counts, total = np.zeros(len(logits), dtype=int), np.zeros(answers.terms.shape[1:])
    best_loss, best_counts = np.inf, counts
    for size in range(1, ROUNDS + 1):
        losses = np.array([answers.loss((total + one) / size) for one in answers.terms])  # (M,) with each member added
        if budget is not None:
            spent = times[counts > 0].sum() + np.where(counts > 0, 0.0, times)
            losses[spent > budget] = np.inf
        chosen = int(losses.argmin())
        counts = counts + np.eye(len(logits), dtype=int)[chosen]
        total = total + answers.terms[chosen]
        if losses[chosen] < best_loss - 1e-9:  # a larger ensemble of the same loss is no better
            best_loss, best_counts = losses[chosen], counts
    return answers.selection(best_counts)


def select_weighted(logits: np.ndarray, labels: np.ndarray, average: Average = "probabilities") -> Selection:
    """Give the members the shares with which the log loss of the average is lowest.

    Stacking (Breiman 1996, Machine Learning 24(1)) of probabilities with shares that sum to 1, as Yao et al. 2018,
    Bayesian Analysis 13(3), section 3.1 have it for predictive distributions. The log loss is convex in the shares, so
    that the lowest is the only one.

    Args:
        logits: (M, N, K) of the validation images.
        labels: (N,).
        average: what of the members is averaged.
    """
    answers, size = _Answers.of(logits, labels, average), len(logits)
    found = minimize(
        lambda shares: answers.loss(np.tensordot(shares, answers.terms, axes=1)),
        np.full(size, 1 / size),
        method="SLSQP",
        bounds=[(0, 1)] * size,
        constraints={"type": "eq", "fun": lambda shares: shares.sum() - 1},
        options={"ftol": 1e-9},
    )
    least = min(LEAST_SHARE, float(found.x.max()))
    return answers.selection(np.where(found.x < least, 0.0, found.x))


@dataclass(frozen=True)
class _Answers:
    """What members gave for the validation images, as it is averaged.

    Attributes:
        terms: (M, N) probabilities of the true class, all that their mean's log loss depends on; or (M, N, K) logits.
        labels: (N,).
    """

    terms: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, average: Average) -> "_Answers":
        """Return the terms of an average of logits (M, N, K)."""
        if average == "logits":
            return cls(log_softmax(logits), labels)
        true = np.exp(np.stack([true_log_probabilities(of_member, labels) for of_member in logits]))
        return cls(np.maximum(true, SMALLEST), labels)

    def loss(self, mean: np.ndarray) -> float:
        """Return the log loss of a mean of the terms, (N,) or (N, K)."""
        true = mean
        if mean.ndim > 1:
            true = np.maximum(np.exp(true_log_probabilities(mean, self.labels)), SMALLEST)
        return float(-np.log(true).mean())

    def selection(self, counts: np.ndarray) -> Selection:
        """Return what has been chosen, for how often (M,) each member was taken."""
        shares = counts / counts.sum()
        alone = [self.loss(one) for one in self.terms]
        loss = self.loss(np.tensordot(shares, self.terms, axes=1))
        return Selection(tuple(shares.tolist()), loss, tuple(alone), int(np.argmin(alone)))
