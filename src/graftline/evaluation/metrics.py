"""How good a classifier is on a split: each number with its 95 % bootstrap interval.

scikit-learn and torchmetrics compute the values, and ``curves.py`` the areas under curves; ``bootstrap.py`` computes
the same statistics of the resamples.
Legend of letters: N images, K classes, R resamples.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from graftline.console import track
from graftline.errors import UserError
from graftline.evaluation.bootstrap import (
    CALIBRATION_BINS,
    Bootstrap,
    Floats,
    Ints,
    chunk_size,
    mean_of_defined,
    multiplicities,
    normalized,
)
from graftline.evaluation.curves import roc_area
from graftline.evaluation.predictions import Predictions

TAILS = (0.025, 0.975)  # percentile interval, Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13
NORMAL_QUANTILE = 1.959964  # 97.5 % quantile of the normal distribution

LONG_WORK = 2_000_000_000  # images x classes x resamples that take some seconds, so that progress is shown

HEADLINES = {
    "accuracy": "accuracy",
    "accuracy_weighted": "accuracy, weighted",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "macro F1",
    "cost": "mean cost",
    "set_coverage": "coverage of the sets",
    "set_size": "classes in a set",
    "refused": "refused as none of the classes",
    "accuracy_accepted": "accuracy of the others",
    "auroc": "AUROC",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
}
SHARES = frozenset(
    {
        "accuracy",
        "accuracy_weighted",
        "accuracy_accepted",
        "balanced_accuracy",
        "precision",
        "recall",
        "refused",
        "set_coverage",
    }
)
BOUNDED = SHARES | {"f1_macro", "auroc"}  # by 0 and 1, where resamples of a perfect score have no spread
LOWER_IS_BETTER = frozenset({"cost", "set_size", "log_loss", "brier", "ece"})


@dataclass(frozen=True)
class Interval:
    """A value and the 95 % interval around it, in the metric's own unit (a share is 0..1)."""

    value: float
    low: float
    high: float


def score(predictions: Predictions, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """Score predictions and say how sure each score is.

    What the names mean:
        accuracy, accuracy_weighted: share of images classified rightly; weighted by their weights (if they have any).
        balanced_accuracy, f1_macro: recall and F1 averaged over the classes, each class counting alike.
        cost: what an answer costs on average, where the classifier's decision has costs.
        set_coverage, set_size: share of the images whose set of classes holds the true one, and how many classes are in
            a set on average, where the decision gives sets.
        refused, accuracy_accepted: share of the images that are marked as none of the classes, and the accuracy on all
            others, where the classifier marks some.
        auroc: area under the ROC curve, of the second class against the first; with more classes, the average over
            the classes of one against the rest.
        log_loss: in nats. brier: mean squared error of the probabilities (Brier 1950, Monthly Weather Review 78(1)),
            0..1 for two classes and 0..2 for more, as scikit-learn scales it.
        ece: expected calibration error of the most probable class, 15 bins of equal width (Guo et al. 2017, arXiv
            1706.04599), as torchmetrics bins.
        precision/CLASS, recall/CLASS: one of each per class.

    A score that the images do not define is left out, never NaN: the recall of a class without images, the precision
    of a class never predicted, the AUROC of a single class. Macro averages are over the classes that have theirs (F1:
    that have images or were predicted). The intervals are percentiles of the same scores of ``resamples`` sets of N
    images drawn with replacement, or of as many groups as there are, each whole, where images have groups; a resample
    that does not define a score is left out of that score's interval. A share (or macro F1, or AUROC) that is the same
    in all resamples, as where all images are classified rightly, has Wilson's interval: see :func:`widened`.

    Args:
        predictions: of N images and K classes.
        resamples: R.
        seed: of the resampling.

    Raises:
        UserError: a probability is not finite, or a weight is missing or negative, or all are zero.
    """
    values, spread = resampled_scores(predictions, resamples, seed)
    scores: dict[str, Interval] = {}
    for name, value in values.items():
        if name in ("precision", "recall"):
            of_classes = zip(predictions.class_names, value, spread[name].T, strict=True)
            scores |= {f"{name}/{class_name}": percentile_interval(one, some) for class_name, one, some in of_classes}
        else:
            scores[name] = percentile_interval(value, spread[name])
    defined = {name: interval for name, interval in scores.items() if not np.isnan(interval.value)}
    known = {name: widened(name, interval, predictions) for name, interval in defined.items()}
    if predictions.refused is not None and not predictions.refused.all():
        rows, groups = np.flatnonzero(~predictions.refused), predictions.drawn_groups
        right = (predictions.predicted == predictions.labels)[rows].astype(np.float64)
        known["accuracy_accepted"] = accuracy_interval(right, None if groups is None else groups[rows])
    return known


def resampled_scores(
    predictions: Predictions, resamples: int, seed: int, *, auroc: bool = True
) -> tuple[dict[str, npt.NDArray[np.float64]], dict[str, npt.NDArray[np.float64]]]:
    """Return the scores themselves, and those of the resamples: of N images the same ones for the same seed.

    Args:
        predictions: of N images and K classes.
        resamples: R.
        seed: of the resampling.
        auroc: whether it is wanted; else it is NaN.

    Returns:
        By name, a scalar array or (K,), as :func:`point_values` gives them; and (R,) or (R, K).

    Raises:
        UserError: as :func:`score`.
    """
    probabilities, labels, weights = predictions.probabilities, predictions.labels, predictions.weights
    _check(probabilities, weights)
    predicted, means = predictions.predicted, _means(predictions)
    values = point_values(probabilities, labels, weights, predicted, auroc=auroc)
    values |= {name: np.asarray(one.mean()) for name, one in means.items()}
    bootstrap = Bootstrap(probabilities, labels, weights, predicted, means, auroc=auroc)
    return values, _resampled(bootstrap, predictions, resamples, seed)


def _means(predictions: Predictions) -> dict[str, npt.NDArray[np.float64]]:
    """Return what is averaged over the images by name, (N,) each: costs, sets and refusals, where there are any."""
    decision, labels = predictions.decision, predictions.labels
    means: dict[str, npt.NDArray[np.float64]] = {}
    if decision.costs:
        means["cost"] = np.array(decision.costs, dtype=np.float64)[labels, predictions.predicted]
    if decision.set_threshold is not None:
        sets = decision.sets(predictions.probabilities)
        means |= {
            "set_coverage": sets[np.arange(len(labels)), labels].astype(np.float64),
            "set_size": sets.sum(axis=1).astype(np.float64),
        }
    if predictions.refused is not None:
        means["refused"] = predictions.refused.astype(np.float64)
    return means


def _check(probabilities: Floats, weights: Floats | None) -> None:
    if not np.isfinite(probabilities).all():
        raise UserError(
            "The model gives probabilities that are not numbers, so its training has diverged: "
            "train again with a smaller learning rate."
        )
    if weights is not None and not (np.isfinite(weights).all() and weights.min() >= 0 and weights.sum() > 0):
        raise UserError(
            "The weighted accuracy needs a weight of at least 0 for every image of the split, and one above 0: "
            "correct the table's weight column, or leave it out."
        )


def point_values(
    probabilities: Floats,
    labels: Ints,
    weights: Floats | None = None,
    predicted: Ints | None = None,
    *,
    auroc: bool = True,
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the scores themselves, with NaN for what is not defined.

    Args:
        probabilities: (N, K).
        labels: (N,).
        weights: (N,) or None.
        predicted: (N,) the class that is answered; None: the most probable one.
        auroc: whether it is wanted; else it is NaN.

    Returns:
        A scalar array per name, and (K,) for ``precision`` and ``recall``; names and order as in :func:`score`.
    """
    # imported here: whoever only builds a gate, or reads a score table, should not wait for scikit-learn
    from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss, precision_score, recall_score

    classes = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(axis=1) if predicted is None else predicted
    exact = normalized(probabilities)
    per_class = {"labels": classes, "average": None, "zero_division": np.nan}
    macro = per_class | {"average": "macro"}
    values: dict[str, float | Floats] = {"accuracy": accuracy_score(labels, predicted)}
    if weights is not None:
        values["accuracy_weighted"] = accuracy_score(labels, predicted, sample_weight=weights)
    values |= {
        # balanced_accuracy_score's value, without its warning when a class without images is predicted
        "balanced_accuracy": recall_score(labels, predicted, **macro),
        "f1_macro": f1_score(labels, predicted, **macro),
        "auroc": _auroc(probabilities, labels) if auroc else np.nan,
        "log_loss": log_loss(labels, exact, labels=classes),
        "brier": brier_score_loss(labels, exact, labels=classes),
        "ece": _calibration_error(exact, labels),
        "precision": precision_score(labels, predicted, **per_class),
        "recall": recall_score(labels, predicted, **per_class),
    }
    return {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}


def class_aurocs(probabilities: Floats, labels: Ints) -> npt.NDArray[np.float64]:
    """Return the area under each class's ROC curve against the rest (K,); NaN for a class without images."""
    areas = np.full(probabilities.shape[1], np.nan)
    for number in range(len(areas)):
        positive = labels == number
        if 0 < np.count_nonzero(positive) < len(labels):
            areas[number] = roc_area(positive, probabilities[:, number])
    return areas


def _auroc(probabilities: Floats, labels: Ints) -> npt.NDArray[np.float64]:
    areas = class_aurocs(probabilities, labels)
    return areas[1] if len(areas) == 2 else mean_of_defined(areas)


def _calibration_error(probabilities: npt.NDArray[np.float64], labels: Ints) -> float:
    # imported here: whoever only reads a score table or draws a figure should not wait for torch
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    error = multiclass_calibration_error(
        torch.from_numpy(probabilities),
        torch.from_numpy(labels.astype(np.int64)),
        num_classes=probabilities.shape[1],
        n_bins=CALIBRATION_BINS,
        norm="l1",
    )
    return float(error)


def _resampled(
    bootstrap: Bootstrap, predictions: Predictions, resamples: int, seed: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the statistics of all resamples, (R,) or (R, K) per name."""
    num_images = len(predictions.labels)
    chunks = multiplicities(num_images, resamples, seed, predictions.drawn_groups)
    if num_images * bootstrap.num_classes * resamples > LONG_WORK:
        chunks = track(chunks, "Sets of resamples for the intervals", total=-(-resamples // chunk_size(num_images)))
    parts = [bootstrap.statistics(counts) for counts in chunks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def percentile_interval(value: npt.NDArray[np.float64], resampled: npt.NDArray[np.float64]) -> Interval:
    """Return a value (scalar array) with the 95 % interval of its resamples (R,), those without the score left out."""
    defined = resampled[~np.isnan(resampled)]
    low, high = np.quantile(defined, TAILS) if len(defined) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))


def widened(name: str, interval: Interval, predictions: Predictions) -> Interval:
    """Return the interval of a score, or Wilson's if it has no width: no resample shows errors that did not happen.

    Args:
        name: of the score.
        interval: by resampling.
        predictions: that were resampled.
    """
    if name.partition("/")[0] not in BOUNDED:
        return interval
    return widened_share(interval, _image_weights(name, predictions), predictions.drawn_groups)


def widened_share(interval: Interval, weights: Floats, groups: Ints | None) -> Interval:
    """Return the interval of a share of images, or Wilson's if it has no width.

    Args:
        interval: by resampling.
        weights: (N,) of the images.
        groups: (N,) number of each image's group; None: each stands alone.
    """
    return interval if interval.low < interval.high else wilson(interval.value, effective_units(weights, groups))


def wilson(share: float, size: float, quantile: float = NORMAL_QUANTILE) -> Interval:
    """Return a share of so many images with its 95 % interval (Wilson 1927, JASA 22).

    >>> format_interval("accuracy", wilson(1.0, 10))
    '72.2 to 100.0 %'
    """
    square = quantile**2 / size
    middle, half = share + square / 2, math.sqrt(square * (share * (1 - share) + square / 4))
    low, high = ((middle + way * half) / (1 + square) for way in (-1, 1))
    return Interval(share, max(0.0, min(share, low)), min(1.0, max(share, high)))  # as rounded it may lie outside


def accuracy_interval(right: Floats, groups: Ints | None) -> Interval:
    """Return the share of images that is right, with its 95 % interval, which is Wilson's.

    Images of one group are alike: they count as the fewer images whose share would scatter as this does between groups,
    with the quantile of Student's t (Korn and Graubard 1998, Survey Methodology 24(2)).

    Args:
        right: (N,) 1 where the answer is right, 0 where it is wrong.
        groups: (N,) number of each image's group; None: each stands alone.
    """
    if groups is None:
        return wilson(float(right.mean()), len(right))
    numbers = np.unique(groups, return_inverse=True)[1]
    share, error = mean_with_error(right, numbers)
    if np.isinf(error) or np.isclose(error, 0):  # of one group, or of groups that are all alike
        return wilson(share, effective_units(np.ones(len(right)), numbers))
    size = min(len(right), share * (1 - share) / error**2)
    return wilson(share, size, float(stdtrit(numbers.max(), TAILS[1])))


def mean_with_error(values: Floats, groups: Ints | None) -> tuple[float, float]:
    """Return the mean of values and its standard error; of one image, or one group of them, infinity: nobody knows.

    Args:
        values: (N,) of the images.
        groups: (N,) number of each image's group, which vary as wholes (Liang and Zeger 1986, Biometrika 73(1)); None:
            each stands alone.
    """
    mean = float(values.mean())
    sums = np.bincount(np.arange(len(values)) if groups is None else groups, values - mean)
    if len(sums) == 1:
        return mean, np.inf
    return mean, float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(values))


def effective_units(weights: Floats, groups: Ints | None) -> float:
    """Return how many images, or groups of them, of equal weight tell as much (Kish 1965, Survey Sampling).

    Args:
        weights: (N,) of the images.
        groups: (N,) number of each image's group; None: each stands alone.

    >>> effective_units(np.array([1.0, 1.0, 0.0]), None), effective_units(np.ones(4), np.array([0, 0, 1, 1]))
    (2.0, 2.0)
    """
    of_units = weights if groups is None else np.bincount(groups, weights)
    return float(of_units.sum() ** 2 / (of_units**2).sum())


def _image_weights(name: str, predictions: Predictions) -> npt.NDArray[np.float64]:
    """Return how much each image counts for a share (N,); for a macro average, each class alike."""
    measure, _, class_name = name.partition("/")
    if measure in ("precision", "recall"):
        classes = predictions.labels if measure == "recall" else predictions.predicted
        return np.asarray(classes == predictions.class_names.index(class_name), np.float64)
    if measure in ("accuracy", "refused", "set_coverage"):
        return np.ones(len(predictions.labels))
    if measure == "accuracy_weighted":
        assert predictions.weights is not None
        return np.asarray(predictions.weights, np.float64)
    counts = np.bincount(predictions.labels)
    return np.asarray(1 / counts[predictions.labels], np.float64)


def metrics_json(scores: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    """Return the scores as ``result.json`` holds them: name → ``{"value", "low", "high"}``."""
    return {name: asdict(interval) for name, interval in scores.items()}


def format_score(name: str, number: float) -> str:
    """Write a score as people read it: per cent for shares of images, three decimals for the rest.

    >>> format_score("accuracy", 0.8842), format_score("log_loss", 0.31149)
    ('88.4 %', '0.311')
    """
    return f"{100 * number:.1f} %" if name.split("/")[0] in SHARES else f"{number:.3f}"


def format_interval(name: str, interval: Interval) -> str:
    """Write the two ends of an interval.

    >>> format_interval("accuracy", Interval(0.88, 0.8604, 0.9091))
    '86.0 to 90.9 %'
    """
    low, high = format_score(name, interval.low), format_score(name, interval.high)
    return f"{low.removesuffix(' %')} to {high}"
