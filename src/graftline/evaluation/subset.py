"""Which training images a score is made of: nested subsets with all classes in proportion.

Letters: N images.
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graftline.data.folds import are_one_group

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


def warn_of_one_group(groups: Sequence[str]) -> None:
    """Say what heads are scored on where all training images are of one group."""
    if are_one_group(groups):
        logger.warning(
            f"All {len(groups):,} training images are of one group, “{groups[0]}”: heads are scored on other images "
            "of that group, which says little of how they do on another one."
        )
