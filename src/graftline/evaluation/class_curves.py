"""The curves of an evaluation as they are drawn: of each class against the rest, and how sure against how right.

Letters: N images, K classes, C classes with images, P points of a curve, B bins.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from graftline.evaluation.bootstrap import CALIBRATION_BINS, confidence_bins, mean_of_defined, normalized
from graftline.evaluation.curves import counts_by_threshold
from graftline.evaluation.metrics import accuracy_interval
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


@dataclass(frozen=True, eq=False)
class CurvesOfClasses:
    """Both kinds of curves.

    Attributes:
        roc: true-positive over false-positive rates, of classes that some images are of and some are not.
        precision_recall: precisions over recalls, and average precisions, of classes with images.
    """

    roc: ClassCurves
    precision_recall: ClassCurves


# with a thousand classes they take half a minute, and figures and report both draw them
_known: WeakKeyDictionary[Predictions, CurvesOfClasses] = WeakKeyDictionary()


def curves_of_classes(predictions: Predictions) -> CurvesOfClasses:
    """Return the curves of each class against the rest; the images are sorted once per class."""
    if (known := _known.get(predictions)) is not None:
        return known
    rates, recalls = np.linspace(0, 1, GRID_POINTS), np.linspace(0, 1, GRID_POINTS)[1:]  # a precision needs a find
    roc, precisions = dict[int, Floats](), dict[int, Floats]()
    roc_areas, precision_areas = (np.full(len(predictions.class_names), np.nan) for _ in range(2))
    for number in np.unique(predictions.labels).tolist():
        positive = predictions.labels == number
        found, taken = counts_by_threshold(positive, predictions.probabilities[:, number])
        recall, precision = found / found[-1], found / taken
        # the precision at the highest threshold that reaches a recall: the steps that average precision sums
        precisions[number] = precision[np.searchsorted(recall, recalls, side="left")]
        precision_areas[number] = np.diff(recall, prepend=0.0) @ precision
        wrong = taken - found
        if wrong[-1] > 0:
            false, true = np.append(0.0, wrong / wrong[-1]), np.append(0.0, recall)
            roc[number] = np.concatenate([[0.0], np.interp(rates, false, true)[1:], [1.0]])
            roc_areas[number] = np.trapezoid(true, false)
    curves = CurvesOfClasses(
        ClassCurves(np.append(rates, 1.0), roc, roc_areas), ClassCurves(recalls, precisions, precision_areas)
    )
    _known[predictions] = curves
    return curves


@dataclass(frozen=True, eq=False)
class Reliability:
    """How right a model is where it is so sure: bins of equal width over 0..1 (Guo et al. 2017, arXiv 1706.04599).

    Attributes:
        counts: (B,) images whose most probable class has a probability in the bin.
        used: numbers of the bins with images; what follows is of these.
        sure: mean probability.
        right: share that is right.
        low: lower end of its 95 % interval; see `accuracy_interval`.
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
        if abs(gap) < 0.0005:
            return "On average as sure of its predictions as they are often right."
        return f"On average {100 * abs(gap):.1f} points too {'sure' if gap > 0 else 'unsure'} of its predictions."


def reliability(predictions: Predictions) -> Reliability:
    """Bin the images by how sure the model is of its most probable class."""
    exact = normalized(predictions.probabilities)
    confidences, correct = exact.max(axis=1).astype(np.float32), exact.argmax(axis=1) == predictions.labels
    bins = np.minimum(confidence_bins(confidences), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    used = np.flatnonzero(counts)
    groups = predictions.drawn_groups
    shares = [
        accuracy_interval(correct[rows].astype(np.float64), None if groups is None else groups[rows])
        for rows in (bins == number for number in used)
    ]
    return Reliability(
        counts=counts,
        used=used,
        sure=np.bincount(bins, confidences, CALIBRATION_BINS)[used] / counts[used],
        right=np.array([share.value for share in shares]),
        low=np.array([share.low for share in shares]),
        high=np.array([share.high for share in shares]),
        mean_sure=float(confidences.mean()),
        mean_right=float(correct.mean()),
    )
