"""The ROC curve of one class against the rest, and what it and the precision-recall curve are made of.

They are scikit-learn's, point for point, without the checks of its arguments: those take milliseconds per call, which
with a thousand classes come to a minute. Letters: N images, T distinct scores.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Rates = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def roc_curve(positive: npt.NDArray[np.bool_], scores: Floats) -> tuple[Rates, Rates]:
    """Return false-positive and true-positive rates as the threshold falls, (T + 1,) each, from 0 to 1.

    Args:
        positive: (N,) whether the image is of the class; some are, and some are not.
        scores: (N,) the probability of the class.

    >>> false, true = roc_curve(np.array([True, False, True]), np.array([0.9, 0.5, 0.1]))
    >>> false.tolist(), true.tolist()
    ([0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0])
    """
    found, taken = counts_by_threshold(positive, scores)
    wrong = taken - found
    return np.append(0.0, wrong / wrong[-1]), np.append(0.0, found / found[-1])


def roc_area(positive: npt.NDArray[np.bool_], scores: Floats) -> float:
    """Return the area under the ROC curve; arguments as for ``roc_curve``."""
    false, true = roc_curve(positive, scores)
    return float(np.trapezoid(true, false))


def counts_by_threshold(positive: npt.NDArray[np.bool_], scores: Floats) -> tuple[Counts, Counts]:
    """Return how many images of the class, and how many at all, have at least each distinct score, from the highest."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # (T,) the last image of each score
    return np.cumsum(positive[order], dtype=np.int64)[ends], ends + 1
