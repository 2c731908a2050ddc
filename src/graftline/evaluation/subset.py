"""Which training images a score is made of: nested subsets with all classes in proportion.

Letters: N images, K classes.
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graftline.data.folds import are_one_group

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

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


def with_rare_first(labels: Ints, first: int, least: int) -> Ints:
    """Return an order of ordered images (N,) whose first ones have some of each class; else they stay as they are.

    Args:
        labels: (N,) of the images in the order in which they are.
        first: how many the first ones are.
        least: of each class that are among them, as far as there are; all classes together no more than ``first``.

    >>> with_rare_first(np.array([0, 0, 0, 0, 0, 1, 0, 1]), first=4, least=2).tolist()
    [0, 1, 5, 7, 2, 3, 4, 6]
    """
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.flatnonzero(ranks < least)
    others = np.flatnonzero(ranks >= least)
    front = np.sort(np.concatenate([wanted, others[: max(0, first - len(wanted))]]))
    return np.concatenate([front, np.setdiff1d(np.arange(len(labels)), front)])


def class_weights(labels: Ints, shares: Floats) -> Floats:
    """Return what an image of each class (K,) counts for, so that the classes count by their shares.

    Args:
        labels: (N,) of the images; a class that is not among them has weight 1.
        shares: (K,) of all images.

    >>> class_weights(np.array([0, 0, 0, 1]), np.array([0.9, 0.1, 0.0])).round(2).tolist()
    [1.2, 0.4, 1.0]
    """
    counts = np.bincount(labels, minlength=len(shares))
    return np.where(counts > 0, shares * len(labels) / np.maximum(counts, 1), 1.0)


def warn_of_one_group(groups: Sequence[str]) -> None:
    """Say what heads are scored on where all training images are of one group."""
    if are_one_group(groups):
        logger.warning(
            f"All {len(groups):,} training images are of one group, “{groups[0]}”: heads are scored on other images "
            "of that group, which says little of how they do on another one."
        )
