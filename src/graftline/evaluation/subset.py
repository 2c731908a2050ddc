"""Which training images a score is made of: nested subsets with all classes in proportion, and their folds.

Letters: N images, K classes, G groups.
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graftline.evaluation.head_score import NUM_FOLDS

Ints = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)


def stratified_order(labels: Ints, keys: Sequence[str] | Ints) -> Ints:
    """Return an order of the images (N,) each beginning of which has the classes in proportion.

    Within a class it is that of the keys: digests of the images are as good as random, and the same wherever they lie.

    >>> stratified_order(np.array([0, 0, 0, 0, 1, 1]), list("dcbafe")).tolist()
    [3, 5, 2, 1, 4, 0]
    """
    order = np.lexsort([np.array(keys), labels])
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    ranks = np.arange(len(labels)) - starts[labels[order]]
    places = (ranks + 0.5) / counts[labels[order]]
    by_place: Ints = order[np.argsort(places, kind="stable")]
    return by_place


def are_one_group(groups: Sequence[str]) -> bool:
    """Tell whether several images are all of one group, which cannot be divided."""
    return len(groups) > 1 and len(set(groups)) == 1


def warn_of_one_group(groups: Sequence[str]) -> None:
    """Say what heads are scored on where all training images are of one group."""
    if are_one_group(groups):
        logger.warning(
            f"All {len(groups):,} training images are of one group, “{groups[0]}”: heads are scored on other images "
            "of that group, which says little of how they do on another one."
        )


def assign_folds(labels: Ints, groups: Sequence[str], num_folds: int = NUM_FOLDS) -> Ints:
    """Divide images into folds: no group is in two of them, and each class is spread as evenly as its groups allow.

    A class of fewer groups than folds is in some folds only; one of a single group is never known where it is tested.
    Images that are all of one group are divided image by image.

    Args:
        labels: (N,) from 0.
        groups: of each image; those of the same one look alike.
        num_folds: how many there are to be; fewer where there are fewer groups, but two at least.

    Returns:
        (N,) the fold of each image, from 0.

    >>> assign_folds(np.array([0, 0, 0, 1, 1, 1]), list("aabcdd"), num_folds=2).tolist()
    [0, 0, 1, 0, 1, 1]
    >>> assign_folds(np.array([0, 0, 1, 1]), list("aaaa"), num_folds=2).tolist()
    [0, 1, 0, 1]
    """
    if are_one_group(groups):
        groups = [str(number) for number in range(len(labels))]
    names, group = np.unique(np.array(groups), return_inverse=True)
    num_classes = int(labels.max()) + 1
    num_folds = min(num_folds, len(names))
    members = np.argsort(group, kind="stable")
    parts = np.split(members, np.cumsum(np.bincount(group))[:-1])
    folds = np.empty(len(labels), np.int64)
    filled = np.zeros((num_folds, num_classes), np.int64)
    for part in sorted(parts, key=len, reverse=True):  # the largest first: the small ones even out what these leave
        counts = np.bincount(labels[part], minlength=num_classes)
        main = int(counts.argmax())
        fold = int(np.lexsort([filled.sum(axis=1), filled[:, main]])[0])
        folds[part] = fold
        filled[fold] += counts
    return folds
