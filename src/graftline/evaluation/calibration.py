"""Fit a calibration on validation images, and keep it only where it helps on images that it was not fitted on.

Letters: N images, K classes, R resamples.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from graftline.bundle.calibration import UNCALIBRATED, Calibration
from graftline.evaluation.bootstrap import multiplicities, ratio
from graftline.evaluation.metrics import TAILS, Interval
from graftline.evaluation.predictions import Predictions

FEWEST_IMAGES = 50  # with fewer, chance moves a temperature by a fifth and more
FEWEST_OF_CLASS = 20  # ten for each of a class's two parameters, Peduzzi et al. 1996, J. Clin. Epidemiol. 49(12)
FOLDS = 5
MOST_IMAGES, MOST_VALUES = 2_000, 1_000_000  # a fit uses so many images, and more up to so many logits
LARGEST = 10.0  # temperature, its inverse, and a bias; a fit that wants more has nothing to go by
FARTHEST_LOGIT = 100.0  # from the largest of its image: a mean of probabilities may be 0, which has no logarithm

MOST_BINS = 15  # Guo et al. 2017, arXiv 1706.04599, section 5
FEWEST_IN_BIN = 20  # images

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]
Fit = Callable[[Floats, Ints], Calibration]  # logits (N, K) and labels (N,) → the best calibration of its kind


@dataclass(frozen=True)
class CalibrationFit:
    """What came of fitting a calibration.

    The scores are of images that the calibration at hand was not fitted on; None where nothing was fitted.

    Attributes:
        calibration: to be used; ``UNCALIBRATED`` where none helps.
        num_images: N, on which it was fitted.
        sentence: what is used and why.
        log_loss_change: of the calibration that is used, else of the temperature, in nats; below 0 is better.
        standard_error: of that change.
        error_before: :func:`calibration_error` of the probabilities as the network gives them.
        error_after: with the calibration.
    """

    calibration: Calibration
    num_images: int
    sentence: str
    log_loss_change: float | None = None
    standard_error: float | None = None
    error_before: Interval | None = None
    error_after: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what a bundle's card says of it."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "calibration"}


@dataclass(frozen=True)
class _Candidate:
    """A calibration, with logits (N, K) and losses (N,) of images that it was not fitted on."""

    calibration: Calibration
    logits: Floats
    losses: Floats

    def change(self, other: "_Candidate") -> tuple[float, float]:
        """Return by how much its log loss is above the other's, and the standard error of that (paired)."""
        differences = self.losses - other.losses
        return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))


def fit_calibration(predictions: Predictions, seed: int = 0, *, weighed: bool = False) -> CalibrationFit:
    """Fit a temperature, and a vector where there are images enough, and choose by cross-validated log loss.

    A temperature is kept where it lowers the log loss of images that it was not fitted on: it has one parameter, and
    one that is kept by chance is near 1. A vector has 2 K and may change answers: it takes the temperature's place
    where it lowers the log loss by more than a standard error more (Breiman et al. 1984, Classification and Regression
    Trees, section 3.4.3).

    Args:
        predictions: of validation images, uncalibrated. Of very many, some are drawn.
        seed: of the draw and of the folds.
        weighed: whether the training weighed its classes or images: the biases of a vector would take that back, and
            only a temperature is fitted.
    """
    logits, labels = _some(predictions, seed)
    if len(labels) < FEWEST_IMAGES:
        return too_few(len(labels))
    if (logits.argmax(axis=1) == labels).all():
        why = f"it classifies all {len(labels):,} validation images rightly, which does not show how often it errs"
        return CalibrationFit(UNCALIBRATED, len(labels), f"The probabilities stay as the network gives them: {why}.")
    plain = _Candidate(UNCALIBRATED, logits, _losses(logits, labels))
    temperature = _cross_validated(fit_temperature, logits, labels, seed)
    best = temperature if temperature.change(plain)[0] < 0 else plain
    if not weighed and np.bincount(labels, minlength=logits.shape[1]).min() >= FEWEST_OF_CLASS:
        vector = _cross_validated(fit_vector, logits, labels, seed)
        change, standard_error = vector.change(best)
        best = vector if change < -standard_error else best
    shown = temperature if best is plain else best
    change, standard_error = shown.change(plain)
    before, after = (calibration_error(softmax(one.logits, axis=1), labels, seed=seed) for one in (plain, shown))
    scores = (
        f"cross-validated log loss of {len(labels):,} validation images {change:+.4f} (standard error "
        f"{standard_error:.4f}), calibration error {_ends(before)} before, {_ends(after)} after"
    )
    if weighed:
        scores += "; as the training was weighed, no bias of a class is fitted"
    sentence = f"The probabilities are calibrated by {_describe(best.calibration)}: {scores}."
    if best is plain:
        kind = _describe(shown.calibration)
        sentence = f"The probabilities stay as the network gives them, {kind} would not improve them: {scores}."
    return CalibrationFit(best.calibration, len(labels), sentence, change, standard_error, before, after)


def too_few(num_images: int) -> CalibrationFit:
    """Return the outcome for fewer images than a fit needs (``FEWEST_IMAGES``)."""
    return CalibrationFit(
        UNCALIBRATED,
        num_images,
        f"The probabilities stay as the network gives them: {num_images} validation images are too few to calibrate "
        f"them ({FEWEST_IMAGES} are enough).",
    )


def fit_temperature(logits: Floats, labels: Ints) -> Calibration:
    """Return the temperature with the lowest log loss (Guo et al. 2017, section 4.2).

    Args:
        logits: (N, K).
        labels: (N,).
    """
    rows = np.arange(len(labels))

    def loss(log_beta: Floats) -> tuple[float, Floats]:
        beta = np.exp(log_beta[0])
        log_probabilities = log_softmax(beta * logits, axis=1)
        gaps = (np.exp(log_probabilities) * logits).sum(axis=1) - logits[rows, labels]
        return -log_probabilities[rows, labels].mean(), np.array([beta * gaps.mean()])

    bound = np.log(LARGEST)
    found = minimize(loss, np.zeros(1), jac=True, method="L-BFGS-B", bounds=[(-bound, bound)])
    return Calibration(temperature=float(np.exp(-found.x[0])))


def fit_vector(logits: Floats, labels: Ints) -> Calibration:
    """Return the scale and bias of each class with the lowest log loss (Guo et al. 2017, section 4.2).

    Args:
        logits: (N, K).
        labels: (N,).
    """
    num_images, num_classes = logits.shape
    rows = np.arange(num_images)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scales, biases = np.split(parameters, 2)
        log_probabilities = log_softmax(scales * logits + biases, axis=1)
        gaps = np.exp(log_probabilities)
        gaps[rows, labels] -= 1
        gradient = np.concatenate([(gaps * logits).mean(axis=0), gaps.mean(axis=0)])
        return -log_probabilities[rows, labels].mean(), gradient

    start = np.repeat([1.0, 0.0], num_classes)
    bounds = [(1 / LARGEST, LARGEST)] * num_classes + [(-LARGEST, LARGEST)] * num_classes
    scales, biases = np.split(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x, 2)
    return Calibration(scales=tuple(scales.tolist()), biases=tuple(biases.tolist()))


def calibration_error(
    probabilities: npt.NDArray[np.floating], labels: Ints, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Return the calibration error of the predicted class: the root of the mean squared gap, without chance's part.

    Each bin has equally many images, and the gap between its accuracy and its mean confidence; what chance alone adds
    to the squares is subtracted (Kumar et al. 2019, arXiv 1909.10155, section 4). The metric ``ece``, of bins of equal
    width and absolute gaps, is the one that is published, but chance raises it: with 400 images, perfect probabilities
    have 0.05. The ends of the 95 % interval are percentiles of resamples, moved by what resampling adds to the mean
    square; in simulations such an interval held the truth 93 times of 100 or more, with 60 images as with 2,000.

    Args:
        probabilities: (N, K).
        labels: (N,).
        resamples: R.
        seed: of the resampling.
    """
    value, drawn = square_gaps(probabilities, labels, resamples, seed)
    low, high = np.quantile(drawn, TAILS) - (drawn.mean() - value)
    return Interval(*(float(np.sqrt(max(0.0, square))) for square in (value, low, high)))


def square_gaps(
    probabilities: npt.NDArray[np.floating], labels: Ints, resamples: int, seed: int
) -> tuple[float, Floats]:
    """Return the square of the calibration error, which may come out below 0, and those of resamples (R,).

    The arguments are those of :func:`calibration_error`; of N images the resamples are the same for the same seed.
    """
    confidences = probabilities.max(axis=1).astype(np.float64)
    gaps = (probabilities.argmax(axis=1) == labels) - confidences
    num_bins = max(1, min(MOST_BINS, len(labels) // FEWEST_IN_BIN))
    edges = np.quantile(confidences, np.arange(1, num_bins) / num_bins)
    bins = np.searchsorted(edges, confidences, side="right")  # equal confidences share a bin
    members = (bins == np.arange(num_bins)[:, None]).astype(np.float64)  # (bins, N)
    value = float(_mean_square_gap(members, gaps, np.ones((len(labels), 1)))[0])
    chunks = multiplicities(len(labels), resamples, seed)
    return value, np.concatenate([_mean_square_gap(members, gaps, counts.astype(np.float64)) for counts in chunks])


def _mean_square_gap(members: Floats, gaps: Floats, counts: Floats) -> Floats:
    """Return the squared gaps (R,) of resamples, averaged over images, without what chance adds to each.

    Args:
        members: (bins, N), 1 where an image is in a bin.
        gaps: (N,), of whether the image is classified rightly from its confidence.
        counts: (N, R), how often each image was drawn.
    """
    sizes = members @ counts  # (bins, R)
    means = ratio((members * gaps) @ counts, sizes)
    variances = np.maximum(ratio((members * gaps**2) @ counts, sizes) - means**2, 0.0)
    squares = means**2 - ratio(variances, sizes - 1)
    total: Floats = np.nansum(squares * sizes, axis=0) / sizes.sum(axis=0)
    return total


def _some(predictions: Predictions, seed: int) -> tuple[Floats, Ints]:
    """Return logits (n, K), all of them finite, and labels (n,) of as many images as a fit needs."""
    num_images, num_classes = predictions.logits.shape
    most = max(MOST_IMAGES, MOST_VALUES // num_classes)
    rows = np.arange(num_images)
    if num_images > most:
        rows = np.sort(np.random.default_rng(seed).choice(num_images, most, replace=False))
    logits = predictions.logits[rows].astype(np.float64)
    return np.maximum(logits, logits.max(axis=1, keepdims=True) - FARTHEST_LOGIT), predictions.labels[rows]


def _cross_validated(fit: Fit, logits: Floats, labels: Ints, seed: int) -> _Candidate:
    """Fit on all images, and on all but each fold's for the logits of that fold; each has its share of each class."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    folds = np.empty(len(labels), np.int64)
    folds[shuffled[np.argsort(labels[shuffled], kind="stable")]] = np.arange(len(labels)) % FOLDS
    held_out = np.empty_like(logits)
    for number in range(FOLDS):
        out = folds == number
        held_out[out] = fit(logits[~out], labels[~out]).apply(logits[out])
    return _Candidate(fit(logits, labels), held_out, _losses(held_out, labels))


def _losses(logits: Floats, labels: Ints) -> Floats:
    losses: Floats = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return losses


def _describe(calibration: Calibration) -> str:
    return (
        "a scale and a bias for each class" if calibration.scales else f"a temperature of {calibration.temperature:.2f}"
    )


def _ends(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
