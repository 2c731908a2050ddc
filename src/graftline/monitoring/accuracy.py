"""What share of a window's answers is right, which nobody has labeled: from how sure the model is, where that tells.

Letters: M images of the reference, N of the window, B resamples.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from graftline.bundle.reference import Observations, Reference
from graftline.evaluation.metrics import TAILS, Interval
from graftline.monitoring.drift import EMBEDDING, Drift

RESAMPLES = 1_000
NEIGHBOR = 5  # as `graftline.evaluation.refusal` looks at
INSIDE = 0.95  # share of the reference that counts as known terrain
MOST_OUTSIDE = 0.1  # beyond the share that lies outside anyway: with more, an estimate is a guess
FEWEST_IMAGES = 50  # of the reference; with fewer, its own accuracy is hardly known


@dataclass(frozen=True)
class EstimatedAccuracy:
    """What can be said of the accuracy in a window.

    Attributes:
        estimate: of the share of right answers; None where it cannot be known.
        reference: what it is on the reference.
        outside: share of the window's images that lie where calibration has seen next to nothing; None where the model
            gives no embedding to tell.
        sentence: what is known and by what.
    """

    estimate: Interval | None
    reference: Interval
    outside: float | None
    sentence: str


def estimate_accuracy(reference: Reference, window: Observations, drift: Drift, seed: int = 0) -> EstimatedAccuracy:
    """Estimate it twice, and give an interval that holds both.

    The accuracy of the reference, changed by as much as the mean confidence has changed (Guillory et al. 2021, arXiv
    2107.03315, "DoC"); and the share of images above the confidence that as many of the reference exceed as are right
    (Garg et al. 2022, arXiv 2201.04234, "ATC"). Both ask the confidences, which were calibrated on the reference and
    mean nothing elsewhere. Where the network sees other images than there, by its embeddings, nothing is claimed: it
    was found to be off by up to 16 points then (docs/monitoring.md). Images of one group of the reference are drawn
    together. Single images that lie outside may all be wrong,
    so that the interval's lower end falls by their share.

    Args:
        reference: of the model.
        window: N images.
        drift: what the window differs in.
        seed: of the resamples.
    """
    known, right = reference.observed.confidences.astype(np.float64), reference.correct.astype(np.float64)
    new, generator = window.confidences.astype(np.float64), np.random.default_rng(seed)
    names, groups = np.unique(reference.groups, return_inverse=True)  # (M,) from 0
    accuracies, found = [], []
    for number in range(RESAMPLES + 1):
        mine, theirs = np.arange(len(known)), np.arange(len(new))
        if number > 0:  # the first is what was observed
            drawn = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))
            mine, theirs = np.repeat(mine, drawn[groups]), generator.integers(0, len(new), len(new))
        accuracies.append(right[mine].mean())
        found.append(_two_estimates(known[mine], right[mine], new[theirs]))
    ends = np.quantile(np.array(found), TAILS, axis=0)  # (2, methods)
    own = Interval(float(accuracies[0]), *(float(end) for end in np.quantile(accuracies, TAILS)))
    outside = _share_outside(reference.observed, window)
    beyond = 0.0 if outside is None else max(0.0, outside - (1 - INSIDE))
    low, high = max(0.0, float(ends[0].min()) - beyond), float(ends[1].max())
    estimate = Interval(float(np.clip(np.mean(found[0]), low, high)), low, high)
    if len(known) < FEWEST_IMAGES:
        few = f"the reference has {len(known)} images, too few to go by"
        return EstimatedAccuracy(None, own, outside, f"The accuracy cannot be estimated: {few}.")
    if outside is None:
        how = "by how sure the model is; it gives no embedding that would tell whether these images are of a new kind"
        return EstimatedAccuracy(estimate, own, None, f"Estimated {how}.")
    told = f"{100 * outside:.0f} % of the images lie farther from the validation images than 95 % of those do"
    if drift[EMBEDDING].rings or beyond > MOST_OUTSIDE:
        why = "the network sees other images than those on which it was checked how sure it may be"
        suggested = f"its confidences would suggest {100 * estimate.value:.0f} %"
        return EstimatedAccuracy(
            None, own, outside, f"The accuracy cannot be known without labels: {why}; {suggested}, and {told}."
        )
    how = "Estimated by how sure the model is of its answers, if all images are of classes that it knows"
    return EstimatedAccuracy(estimate, own, outside, f"{how}; {told}.")


def _two_estimates(
    known: npt.NDArray[np.float64], right: npt.NDArray[np.float64], new: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Return the share of right answers by the difference of confidences and by a threshold."""
    accuracy = right.mean()
    by_mean = float(np.clip(accuracy + new.mean() - known.mean(), 0, 1))
    threshold = np.sort(known)[min(len(known) - 1, round((1 - accuracy) * len(known)))]
    return by_mean, float((new >= threshold).mean())


def _share_outside(reference: Observations, window: Observations) -> float | None:
    """Return the share of a window that lies farther from the reference than ``INSIDE`` of it does from the rest."""
    if reference.embeddings.shape[1] == 0 or len(reference) <= NEIGHBOR + 1:
        return None
    mine, theirs = (one.embeddings.astype(np.float64) for one in (reference, window))
    own = np.partition(cdist(mine, mine), NEIGHBOR, axis=1)[:, NEIGHBOR]  # the nearest is the image itself
    new = np.partition(cdist(theirs, mine), NEIGHBOR - 1, axis=1)[:, NEIGHBOR - 1]
    return float((new > np.quantile(own, INSIDE)).mean())
