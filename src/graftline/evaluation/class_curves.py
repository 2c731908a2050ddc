"""The curves of an evaluation as they are drawn: of each class against the rest, and how sure against how right.

Letters: N images, K classes, C classes with images, P points of a curve, B bins.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from graftline.evaluation.bootstrap import CALIBRATION_BINS, confidence_bins, mean_of_defined, normalized
from graftline.evaluation.curves import average_precision, precision_recall_curve, roc_curve
from graftline.evaluation.metrics import class_aurocs
from graftline.evaluation.predictions import Predictions

GRID_POINTS = 501  # of a curve that is averaged over the classes
WORST_NAMED = 3  # of more classes than a picture has colors for

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ClassCurves:
    """A curve of each class against the rest.

    Attributes:
        grid: (P,) where the curves are taken.
        curves: number of the class → (P,), of the C classes that have one.
        areas: (K,) under the curves; NaN for a class without one.
    """

    grid: Floats
    curves: dict[int, Floats]
    areas: Floats

    @property
    def average(self) -> Floats:
        """(P,), over the classes."""
        mean: Floats = np.mean(list(self.curves.values()), axis=0)
        return mean

    @property
    def mean_area(self) -> float:
        """The mean of the areas."""
        return float(mean_of_defined(self.areas))

    def named(self, most: int) -> list[int]:
        """Return the classes to name: all of up to ``most``, of more the worst few."""
        if len(self.curves) <= most:
            return sorted(self.curves)
        return sorted(self.curves, key=lambda number: float(self.areas[number]))[:WORST_NAMED]


def roc_of_classes(predictions: Predictions) -> ClassCurves:
    """Return true-positive rates over false-positive rates, of classes that some images are of and some are not."""
    probabilities, labels = predictions.probabilities, predictions.labels
    areas = class_aurocs(probabilities, labels)
    rates = np.linspace(0, 1, GRID_POINTS)
    curves = {}
    for number in np.flatnonzero(~np.isnan(areas)):
        false, true = roc_curve(labels == number, probabilities[:, number])
        curves[int(number)] = np.concatenate([[0.0], np.interp(rates, false, true)[1:], [1.0]])
    return ClassCurves(np.append(rates, 1.0), curves, areas)


def precision_recall_of_classes(predictions: Predictions) -> ClassCurves:
    """Return precisions over recalls, and average precisions, of classes with images."""
    probabilities, labels = predictions.probabilities, predictions.labels
    recalls = np.linspace(0, 1, GRID_POINTS)[1:]  # a precision needs something found
    curves = {}
    areas = np.full(len(predictions.class_names), np.nan)
    for number in np.unique(labels):
        positive = labels == number
        areas[number] = average_precision(positive, probabilities[:, number])
        precision, recall = precision_recall_curve(positive, probabilities[:, number])
        # the precision at the highest threshold that reaches a recall: the steps that average precision sums
        curves[int(number)] = precision[np.searchsorted(recall, recalls, side="left")]
    return ClassCurves(recalls, curves, areas)


@dataclass(frozen=True, eq=False)
class Reliability:
    """How right a model is where it is so sure: bins of equal width over 0..1 (Guo et al. 2017, arXiv 1706.04599).

    Attributes:
        counts: (B,) images whose most probable class has a probability in the bin.
        used: numbers of the bins with images; what follows is of these.
        sure: mean probability.
        right: share that is right.
        low: lower end of its 95 % Wilson interval.
        high: upper end.
        mean_sure: over all images.
        mean_right: likewise.
    """

    counts: Ints
    used: Ints
    sure: Floats
    right: Floats
    low: Floats
    high: Floats
    mean_sure: float
    mean_right: float

    @property
    def sentence(self) -> str:
        """Whether the model is too sure."""
        gap = self.mean_sure - self.mean_right
        return f"On average {100 * abs(gap):.1f} points too {'sure' if gap > 0 else 'unsure'} of its predictions."


def reliability(predictions: Predictions) -> Reliability:
    """Bin the images by how sure the model is of its most probable class."""
    exact = normalized(predictions.probabilities)
    confidences, correct = exact.max(axis=1).astype(np.float32), exact.argmax(axis=1) == predictions.labels
    bins = np.minimum(confidence_bins(confidences), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    used = np.flatnonzero(counts)
    hits = np.bincount(bins, correct, CALIBRATION_BINS)[used]
    tests = [binomtest(int(one), int(count)) for one, count in zip(hits, counts[used], strict=True)]
    ends = [test.proportion_ci(method="wilson") for test in tests]
    return Reliability(
        counts=counts,
        used=used,
        sure=np.bincount(bins, confidences, CALIBRATION_BINS)[used] / counts[used],
        right=hits / counts[used],
        low=np.array([end.low for end in ends]),
        high=np.array([end.high for end in ends]),
        mean_sure=float(confidences.mean()),
        mean_right=float(correct.mean()),
    )
