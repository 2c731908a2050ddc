"""How good the answers are that a classifier is surest of (selective classification: Geifman and El-Yaniv 2017).

Letters: N images.
"""

import numpy as np
import numpy.typing as npt

from graftline.evaluation.metrics import Interval, accuracy_interval
from graftline.evaluation.predictions import Predictions

Floats = npt.NDArray[np.float64]


def coverage_curve(predictions: Predictions) -> tuple[Floats, Floats]:
    """Return shares of the images that are answered, the surest first, and the accuracy on these, (N,) each.

    Images with equal probabilities are answered together: among them, every one counts as right by their common share.
    """
    right = _surest_first(predictions)[1]
    answered = np.arange(1, len(right) + 1)
    return answered / len(right), np.cumsum(right) / answered


def accuracy_at(predictions: Predictions, share: float) -> Interval:
    """Return the accuracy on the surest share of the images, at least one, with its 95 % interval."""
    order, right = _surest_first(predictions)
    count, groups = max(1, round(share * len(order))), predictions.drawn_groups
    return accuracy_interval(right[:count], None if groups is None else groups[order[:count]])


def _surest_first(predictions: Predictions) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the numbers of the images, the surest first, and how far each is right, (N,) each."""
    order = np.argsort(-predictions.confidences, kind="stable")
    right = (predictions.predicted == predictions.labels)[order].astype(np.float64)
    _, ties, sizes = np.unique(-predictions.confidences[order], return_inverse=True, return_counts=True)
    return order, (np.bincount(ties, right) / sizes)[ties]
