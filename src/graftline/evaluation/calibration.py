"""Fit a calibration on validation images, and keep it only where it helps on images that it was not fitted on.

Letters: N images, K classes, R resamples, G groups of images, or single ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from graftline.bundle.calibration import UNCALIBRATED, Calibration
from graftline.data.folds import assign_folds
from graftline.evaluation.bootstrap import drawn_groups, multiplicities, ratio
from graftline.evaluation.metrics import TAILS, Interval, mean_with_error
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

    def change(self, other: "_Candidate", groups: Ints | None) -> tuple[float, float]:
        """Return by how much its log loss is above the other's, and the standard error of that (paired)."""
        return mean_with_error(self.losses - other.losses, groups)


def fit_calibration(predictions: Predictions, seed: int = 0, *, weighed: bool = False) -> CalibrationFit:
    """Fit a temperature, and a vector where there are images enough, and choose by cross-validated log loss.

    No group of images is in two folds, and groups vary as wholes in the standard error and the calibration errors.

    A temperature is kept where it lowers the log loss of images that it was not fitted on by more than a standard error
    (Breiman et al. 1984, Classification and Regression Trees, section 3.4.3), or by less if their calibration error is
    no larger. A vector may change answers: it takes the temperature's place where it lowers the log loss by more than
    a standard error more.

    Args:
        predictions: of validation images, uncalibrated. Of very many, some are drawn.
        seed: of the draw and of the folds.
        weighed: whether the training weighed its classes or images: the biases of a vector would take that back, and
            only a temperature is fitted.
    """
    logits, labels, groups = _some(predictions, seed)
    if len(labels) < FEWEST_IMAGES:
        return too_few(len(labels))
    if (logits.argmax(axis=1) == labels).all():
        why = f"it classifies all {len(labels):,} validation images rightly, which does not show how often it errs"
        return CalibrationFit(UNCALIBRATED, len(labels), f"The probabilities stay as the network gives them: {why}.")
    plain = _Candidate(UNCALIBRATED, logits, _losses(logits, labels))
    folds, numbers = _folds(labels, groups, seed), drawn_groups(groups)

    def error(candidate: _Candidate) -> Interval:
        return calibration_error(softmax(candidate.logits, axis=1), labels, seed=seed, groups=numbers)

    shown = temperature = _cross_validated(fit_temperature, logits, labels, folds)
    before, after = error(plain), error(temperature)
    change, standard_error = temperature.change(plain, numbers)
    is_better = change < -standard_error or (change < 0 and after.value <= before.value)
    best = temperature if is_better else plain
    if not weighed and np.bincount(labels, minlength=logits.shape[1]).min() >= FEWEST_OF_CLASS:
        vector = _cross_validated(fit_vector, logits, labels, folds)
        further, its_error = vector.change(best, numbers)
        if further < -its_error:
            shown = best = vector
            after, (change, standard_error) = error(vector), vector.change(plain, numbers)
    gain = f"the cross-validated log loss of {len(labels):,} validation images by {change:+.4f}"
    errors = f"calibration error {_ends(before)} without it, {_ends(after)} with it"
    if weighed:
        errors += "; as the training was weighed, no bias of a class is fitted"
    if best is plain:
        done = f"stay as the network gives them: {_describe(shown.calibration)} would change"
        spread = f"standard error {standard_error:.4f}, no clear gain"
    else:
        done = f"are calibrated by {_describe(best.calibration)}: this changes"
        spread = f"standard error {standard_error:.4f}"
    sentence = f"The probabilities {done} {gain} ({spread}), {errors}."
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
    probabilities: npt.NDArray[np.floating],
    labels: Ints,
    resamples: int = 1000,
    seed: int = 0,
    groups: Ints | None = None,
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
        groups: (N,) number of each image's group, where groups are resampled; None: images are.
    """
    value, drawn = square_gaps(probabilities, labels, resamples, seed, groups)
    low, high = np.quantile(drawn, TAILS) - (drawn.mean() - value)
    return Interval(*(float(np.sqrt(max(0.0, square))) for square in (value, low, high)))


def square_gaps(
    probabilities: npt.NDArray[np.floating], labels: Ints, resamples: int, seed: int, groups: Ints | None = None
) -> tuple[float, Floats]:
    """Return the square of the calibration error, which may come out below 0, and those of resamples (R,).

    The arguments are those of :func:`calibration_error`; of N images the resamples are the same for the same seed.
    """
    confidences = probabilities.max(axis=1).astype(np.float64)
    gaps = (probabilities.argmax(axis=1) == labels) - confidences
    num_bins = max(1, min(MOST_BINS, len(labels) // FEWEST_IN_BIN))
    edges = np.quantile(confidences, np.arange(1, num_bins) / num_bins)
    bins = np.searchsorted(edges, confidences, side="right")  # equal confidences share a bin
    units = np.arange(len(labels)) if groups is None else groups
    first = np.unique(units, return_index=True)[1]  # (G,) an image of each unit
    sizes, sums = np.zeros((num_bins, len(first))), np.zeros((num_bins, len(first)))
    np.add.at(sizes, (bins, units), 1.0)
    np.add.at(sums, (bins, units), gaps)
    value = float(_mean_square_gap(sizes, sums, np.ones((len(first), 1)))[0])
    chunks = multiplicities(len(labels), resamples, seed, groups)
    return value, np.concatenate([_mean_square_gap(sizes, sums, counts[first].astype(np.float64)) for counts in chunks])


def _mean_square_gap(sizes: Floats, sums: Floats, counts: Floats) -> Floats:
    """Return the squared gaps (R,) of resamples, averaged over images, without what chance adds to each.

    What chance adds is the variance of a bin's gap, a mean over images that come in units: an image or a group, of
    which there are G.

    Args:
        sizes: (bins, G), how many images of a unit are in a bin.
        sums: (bins, G), of their gaps: of whether an image is classified rightly from its confidence.
        counts: (G, R), how often each unit was drawn.
    """
    totals, units = sizes @ counts, (sizes > 0) @ counts  # (bins, R)
    means = ratio(sums @ counts, totals)
    deviations = sums**2 @ counts - 2 * means * ((sums * sizes) @ counts) + means**2 * (sizes**2 @ counts)
    variances = ratio(np.maximum(deviations, 0.0) * units, totals**2 * (units - 1))
    total: Floats = np.nansum((means**2 - variances) * totals, axis=0) / totals.sum(axis=0)
    return total


def _some(predictions: Predictions, seed: int) -> tuple[Floats, Ints, list[str] | None]:
    """Return logits (n, K), all of them finite, labels (n,) and groups, if any, of as many images as a fit needs."""
    num_images, num_classes = predictions.logits.shape
    most = max(MOST_IMAGES, MOST_VALUES // num_classes)
    rows = np.arange(num_images)
    if num_images > most:
        rows = np.sort(np.random.default_rng(seed).choice(num_images, most, replace=False))
    logits = predictions.logits[rows].astype(np.float64)
    groups = None if predictions.groups is None else [predictions.groups[row] for row in rows.tolist()]
    return np.maximum(logits, logits.max(axis=1, keepdims=True) - FARTHEST_LOGIT), predictions.labels[rows], groups


def _folds(labels: Ints, groups: Sequence[str] | None, seed: int) -> Ints:
    """Return the fold (N,) of each image; each fold has its share of each class, and no group is in two of them."""
    if groups is not None and drawn_groups(groups) is not None:
        return assign_folds(labels, groups, FOLDS)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    folds = np.empty(len(labels), np.int64)
    folds[shuffled[np.argsort(labels[shuffled], kind="stable")]] = np.arange(len(labels)) % FOLDS
    return folds


def _cross_validated(fit: Fit, logits: Floats, labels: Ints, folds: Ints) -> _Candidate:
    """Fit on all images, and on all but each fold's (N,) for the logits of that fold."""
    held_out = np.empty_like(logits)
    for number in range(int(folds.max()) + 1):
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
