"""Folds of images: what is fitted to the others is scored on one, or members of an ensemble differ by what they saw.

Letters: N images.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graftline.data.version import DatasetVersion
from graftline.errors import UserError

Ints = npt.NDArray[np.int64]

NUM_FOLDS = 5  # Hastie, Tibshirani and Friedman 2009, section 7.10: five or ten, of which five take half the time

_FOLD = re.compile(r"([1-9]\d*)/([1-9]\d*)")


def check_fold(fold: str) -> tuple[int, int]:
    """Return which of how many folds is meant.

    Raises:
        UserError: that cannot be.

    >>> check_fold("2/5")
    (2, 5)
    """
    match = _FOLD.fullmatch(fold)
    number, count = (int(match[1]), int(match[2])) if match is not None else (0, 0)
    if not 1 <= number <= count or count < 2:
        raise UserError(f"Recipe.fold is {fold}: give which of how many is left out, such as 2/5.")
    return number, count


def without_fold(version: DatasetVersion, fold: str | None) -> DatasetVersion:
    """Return a version without a fold of its training images; the other splits stay as they are.

    Each class is divided evenly, in the order of the images' contents, which no path and no order of files changes. Of
    a class with fewer images than there are folds, all stay.

    Args:
        version: has the images.
        fold: which of how many, such as ``2/5``; None: the version as it is.

    Raises:
        UserError: there is no such fold.
    """
    if fold is None:
        return version
    number, count = check_fold(fold)
    table = version.table()
    training = table[table["split"] == "train"]
    by_class = training.groupby("label")["sha256"]
    in_fold = (by_class.rank(method="dense") % count == number % count) & (by_class.transform("nunique") >= count)
    kept = table.drop(index=training.index[in_fold])
    return version.divided(dict(zip(kept["sha256"], kept["split"], strict=True)))


def are_one_group(groups: Sequence[str]) -> bool:
    """Tell whether several images are all of one group, which cannot be divided."""
    return len(groups) > 1 and len(set(groups)) == 1


def assign_folds(labels: npt.NDArray[np.integer], groups: Sequence[str], num_folds: int = NUM_FOLDS) -> Ints:
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
