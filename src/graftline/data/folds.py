"""Folds: a training on all training images but some, so that the members of an ensemble differ by what they saw."""

import re

from graftline.data.version import DatasetVersion
from graftline.errors import UserError

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
