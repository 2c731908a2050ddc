"""Statistics of many bootstrap resamples at once, from how often each image was drawn.

A resample of N images, with replacement, is kept as N multiplicities: an image drawn twice counts twice. Every
statistic below is a ratio of sums over images, so all the resamples of a chunk are one (sparse) matrix product away,
and nothing is ever copied or sorted again. The tests compare each statistic with scikit-learn's and torchmetrics' own
functions on resamples that are written out.

Legend of letters: N images, K classes, B resamples of a chunk.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from graftline.errors import UserError

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]

FEWEST_RESAMPLES = 100  # with fewer, the ends of a 95 % interval rest on one or two resamples
CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv 1706.04599, section 5
MAX_CHUNK_ENTRIES = 8_000_000  # N * B; 32 MB of int32, small enough to stay near the processor
MAX_CHUNK_RESAMPLES = 128


def require_resampling(owner: str, resamples: int, seed: int) -> None:
    """Make sure that there are enough resamples for an interval, and that the seed is one.

    Args:
        owner: class that has both, for messages.
        resamples: how many give an interval.
        seed: of the draws.

    Raises:
        UserError: there are too few, or the seed is negative.
    """
    if resamples < FEWEST_RESAMPLES:
        raise UserError(
            f"{owner}.resamples is {resamples}, too few for a 95 % interval: "
            f"use at least {FEWEST_RESAMPLES}, or leave it at 1000."
        )
    if seed < 0:
        raise UserError(f"{owner}.seed is {seed}, it must be at least 0.")


def chunk_size(num_images: int) -> int:
    """Return how many resamples are worked on at once."""
    return max(1, min(MAX_CHUNK_RESAMPLES, MAX_CHUNK_ENTRIES // num_images))


def multiplicities(num_images: int, resamples: int, seed: int, groups: Ints | None = None) -> Iterator[Ints]:
    """Draw resamples (Efron 1979, Annals of Statistics 7(1), section 2).

    Args:
        num_images: N.
        resamples: how many to draw in total.
        seed: of the draws. They do not depend on the size of the chunks.
        groups: (N,) number of each image's group from 0, where images of one group are alike: groups are drawn, each
            whole (Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8). None: images are.

    Yields:
        (N, B) int32: how often each image was drawn; each column sums to N, but for groups of different sizes.
    """
    generator = np.random.default_rng(seed)
    size, units = chunk_size(num_images), num_images if groups is None else int(groups.max()) + 1
    for start in range(0, resamples, size):
        draws = [
            np.bincount(generator.integers(0, units, units), minlength=units).astype(np.int32)
            for _ in range(min(size, resamples - start))
        ]
        of_images = draws if groups is None else [counts[groups] for counts in draws]
        yield np.ascontiguousarray(np.stack(of_images, axis=1))


def drawn_groups(groups: Sequence[str] | None) -> npt.NDArray[np.int64] | None:
    """Return the number of each image's group (N,), where groups are to be resampled.

    Args:
        groups: N names; images of one group are alike. None: each stands alone.

    Returns:
        None where images are to be: each stands alone, or all are of one group, which shows nothing of others.

    >>> drawn_groups(["b", "a", "b"])
    array([1, 0, 1])
    """
    if groups is None or len(set(groups)) in (1, len(groups)):
        return None
    numbers: npt.NDArray[np.int64] = np.unique(np.array(groups), return_inverse=True)[1]
    return numbers


def normalized(probabilities: Floats) -> npt.NDArray[np.float64]:
    """Return float64 probabilities whose rows sum to one: a float32 softmax misses it by 1e-7, which log loss minds."""
    exact: npt.NDArray[np.float64] = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    return exact


def confidence_bins(confidences: npt.NDArray[np.float32]) -> Ints:
    """Return the calibration bin of each confidence, with torchmetrics' edges: of torch, in single precision.

    Args:
        confidences: (N,) probability of the predicted class.

    Returns:
        (N,) int64 in 0..15; a confidence of exactly 1 is alone in bin 15, beyond the last edge.
    """
    import torch  # torch's linspace and numpy's differ in the last digit, which moves a confidence of 0.8

    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=torch.float32).numpy()
    bins: Ints = np.searchsorted(edges, confidences, side="right") - 1
    return bins


def ratio(numerator: npt.NDArray[np.generic], denominator: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Divide; NaN where the denominator is zero."""
    result = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


def mean_of_defined(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average over the last axis without the NaNs; NaN only where there is nothing else."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


class RankedClass:
    """One class against the rest, sorted once, so that the area under its ROC curve is two sums for any multiplicities.

    The area is the chance that a positive image ranks above a negative one, ties counting half (Hanley and McNeil 1982,
    Radiology 143(1)). The positives' distinct scores cut the line into segments: odd ones are those scores themselves,
    even ones lie between. What is left to do for a resample is to sum its multiplicities per segment.
    """

    def __init__(self, scores: Floats, positive: npt.NDArray[np.bool_]) -> None:
        """Sort.

        Args:
            scores: (N,) the probability of the class.
            positive: (N,) whether the image is of the class.
        """
        distinct = np.unique(scores[positive])
        segments = np.searchsorted(distinct, scores, side="left") + np.searchsorted(distinct, scores, side="right")
        self.positive = np.flatnonzero(positive)
        self.all_sums = _sums_by_row(segments, 2 * len(distinct) + 1)
        self.positive_sums = _sums_by_row(segments[self.positive] // 2, len(distinct))

    def areas(self, counts: Ints) -> npt.NDArray[np.float64]:
        """Return the area under the ROC curve (B,) for multiplicities ``counts`` (N, B); NaN without both kinds."""
        positives = self.positive_sums @ counts[self.positive]
        negatives = self.all_sums @ counts
        negatives[1::2] -= positives
        below = np.cumsum(negatives, axis=0, dtype=np.int64)[:-1:2]
        twice_won = (positives * (2 * below + negatives[1::2])).sum(axis=0)
        return ratio(twice_won, 2 * positives.sum(axis=0, dtype=np.int64) * negatives.sum(axis=0, dtype=np.int64))


def _sums_by_row(rows: Ints, num_rows: int, values: Floats | None = None) -> sparse.csc_matrix:
    """Return a (num_rows, N) matrix whose product with multiplicities (N, B) sums them by each image's row."""
    size = len(rows)
    entries = np.ones(size, np.int32) if values is None else values
    columns = np.arange(size + 1, dtype=np.int32)  # one entry per column
    return sparse.csc_matrix((entries, rows.astype(np.int32), columns), shape=(num_rows, size))


class Bootstrap:
    """What all resamples of one evaluation share: correctness, losses, bins and ranks, computed once."""

    def __init__(
        self,
        probabilities: Floats,
        labels: Ints,
        weights: Floats | None = None,
        predicted: Ints | None = None,
        means: Mapping[str, Floats] | None = None,
        *,
        auroc: bool = True,
    ) -> None:
        """Prepare.

        Args:
            probabilities: (N, K).
            labels: (N,) in 0..K-1.
            weights: (N,) how much each image counts in the weighted accuracy, or None.
            predicted: (N,) the class that is answered; None: the most probable one.
            means: (N,) numbers by name, of which the mean is wanted too.
            auroc: whether that is wanted, which takes nearly all of the time where classes are many; else it is NaN.
        """
        num_images, self.num_classes = probabilities.shape
        most_probable = probabilities.argmax(axis=1)
        predicted = most_probable if predicted is None else predicted
        correct = predicted == labels
        exact = normalized(probabilities)
        confidences = exact.max(axis=1).astype(np.float32)  # as torchmetrics takes them

        self.sums = {"log_loss": log_losses(exact, labels), "brier": brier_terms(exact, labels)}
        if weights is not None:
            self.sums |= {"weight": weights.astype(np.float64), "weight_correct": weights * correct}
        self.means = tuple(means or {})
        self.sums |= {name: values.astype(np.float64) for name, values in (means or {}).items()}
        self.true_sums = _sums_by_row(labels, self.num_classes)
        self.predicted_sums = _sums_by_row(predicted, self.num_classes)
        self.correct_sums = _sums_by_row(labels, self.num_classes, correct.astype(np.int32))
        self.gap_sums = _sums_by_row(
            confidence_bins(confidences),
            CALIBRATION_BINS + 1,
            (most_probable == labels) - confidences.astype(np.float64),
        )
        ranked = [1] if self.num_classes == 2 else range(self.num_classes)
        present = [number for number in ranked if auroc and 0 < np.count_nonzero(labels == number) < num_images]
        self.ranked = [
            RankedClass(np.ascontiguousarray(probabilities[:, number]), labels == number) for number in present
        ]

    def statistics(self, counts: Ints) -> dict[str, npt.NDArray[np.float64]]:
        """Return every statistic of the resamples.

        Args:
            counts: (N, B) multiplicities.

        Returns:
            (B,) per name, and (B, K) for ``precision`` and ``recall``. NaN where a resample does not define it: the
            recall of a class it has no image of, the precision of a class it never predicts, the AUROC of one class.
            Macro averages are over the classes that define theirs, as in scikit-learn's balanced_accuracy_score.
        """
        size = counts.sum(axis=0)
        true = (self.true_sums @ counts).T
        predicted = (self.predicted_sums @ counts).T
        correct = (self.correct_sums @ counts).T
        recall = ratio(correct, true)
        real_counts = counts.astype(np.float64)
        sums = {name: terms @ real_counts for name, terms in self.sums.items()}
        areas = np.stack([one.areas(counts) for one in self.ranked], axis=1) if self.ranked else None

        result = {
            "accuracy": ratio(correct.sum(axis=1), size),
            "balanced_accuracy": mean_of_defined(recall),
            "f1_macro": mean_of_defined(ratio(2 * correct, true + predicted)),
            "auroc": np.full(len(size), np.nan) if areas is None else mean_of_defined(areas),
            "log_loss": ratio(sums["log_loss"], size),
            "brier": ratio(sums["brier"], size),
            "ece": ratio(np.abs(self.gap_sums @ real_counts).sum(axis=0), size),
            "precision": ratio(correct, predicted),
            "recall": recall,
        }
        if "weight" in sums:
            result["accuracy_weighted"] = ratio(sums["weight_correct"], sums["weight"])
        return result | {name: ratio(sums[name], size) for name in self.means}


def log_losses(probabilities: npt.NDArray[np.float64], labels: Ints) -> npt.NDArray[np.float64]:
    """Return each image's loss (N,), clipped as scikit-learn's log_loss clips."""
    smallest = np.finfo(np.float64).eps
    return -np.log(np.clip(probabilities[np.arange(len(labels)), labels], smallest, 1 - smallest))


def brier_terms(probabilities: npt.NDArray[np.float64], labels: Ints) -> npt.NDArray[np.float64]:
    """Return each image's squared error (N,), halved for two classes as scikit-learn's brier_score_loss does."""
    squares = np.einsum("nk,nk->n", probabilities, probabilities)
    scale = 0.5 if probabilities.shape[1] == 2 else 1.0
    terms: npt.NDArray[np.float64] = scale * (squares - 2 * probabilities[np.arange(len(labels)), labels] + 1)
    return terms
