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
    order = np.argsort(-predictions.confidences, kind="stable")
    confidences = predictions.confidences[order]
    right = (predictions.predicted == predictions.labels)[order].astype(np.float64)
    _, groups, sizes = np.unique(-confidences, return_inverse=True, return_counts=True)
    right = (np.bincount(groups, right) / sizes)[groups]
    answered = np.arange(1, len(order) + 1)
    return answered / len(order), np.cumsum(right) / answered


def accuracy_at(predictions: Predictions, share: float) -> Interval:
    """Return the accuracy on the surest share of the images, at least one, with its 95 % interval."""
    order = np.argsort(-predictions.confidences, kind="stable")
    confidences, groups = predictions.confidences[order], predictions.drawn_groups
    right = (predictions.predicted == predictions.labels)[order].astype(np.float64)
    count = max(1, round(share * len(order)))
    least_sure = confidences == confidences[count - 1]
    right[least_sure] = right[least_sure].mean()
    return accuracy_interval(right[:count], None if groups is None else groups[order[:count]])
