"""Inherit splits: find where images of a new dataset version belong by what is known from the versions before.

A unit is what must stay together: images that share a group or a content, directly or through others, in the new
version or in any before it. The rules:

- A unit of which nothing is known is new; it is drawn (`graftline.data.split.draw`).
- A unit that is known from one split belongs there, its new images too.
- One that is known from training and validation belongs to training: two groups have become one, and one of them has
  to move. Nothing is judged on validation images that would be spoiled by training on them.
- One that is known from test and from training or validation (groups of either have become one) can have no split
  that is honest for all. Its test images stay test images, so that scores remain comparable. Everything else leaves:
  what was trained on, since the next model would else be judged on a group that has trained it; and what is new, since
  in test it would flatter the models of before, and in training spoil the test images of its group.

So no image and no group that was in test is ever trained on, and no image that was trained on is ever tested. An image
that goes and comes back counts as known.
"""

import numpy as np
import pandas as pd

from graftline.data.hashing import hash_texts
from graftline.data.rows import named


def inherit(images: pd.DataFrame, history: pd.DataFrame) -> tuple["pd.Series[str]", "pd.Series[bool]"]:
    """Find out which split each image inherits.

    Args:
        images: (N rows) with columns sha256 and group.
        history: rows of sha256, group and split, as `graftline.data.version.DatasetVersion.history` returns them.

    Returns:
        The split of each image, None where it is of a new unit or leaves; and whether it leaves.
    """
    units = number_units(pd.concat([history[["sha256", "group"]], images[["sha256", "group"]]], ignore_index=True))
    known, units = units[: len(history)], units[len(history) :]
    num_units = max(known.max(initial=-1), units.max(initial=-1)) + 1
    was_in = {
        split: np.bincount(known[history["split"] == split], minlength=num_units) > 0
        for split in ("train", "validation", "test")
    }
    was_trained_on = was_in["train"] | was_in["validation"]
    is_mixed = was_in["test"] & was_trained_on
    names = ["test", "train", "validation"]
    split_of_unit = np.select([was_in[split] & ~is_mixed for split in names], np.arange(3, dtype=np.int8), np.int8(-1))
    mixed = images.loc[is_mixed[units], "sha256"]
    before = history[history["sha256"].isin(mixed)]
    tested = set(before.loc[before["split"] == "test", "sha256"])
    tested -= set(before.loc[before["split"].isin(["train", "validation"]), "sha256"])
    stays = is_mixed[units]
    stays[stays] = mixed.isin(tested).to_numpy()
    splits = np.where(stays, np.int8(0), split_of_unit[units])
    return named(splits, names, images.index), pd.Series(is_mixed[units] & ~stays, index=images.index)


def number_units(images: pd.DataFrame) -> np.ndarray:
    """Number units: rows that share a group or a content, directly or through others, have the same number.

    Args:
        images: (N rows) with columns sha256 and group (None: of no group).

    Returns:
        (N,) int64, numbered as they come up.
    """
    # not at the top, as a mistyped key must not wait for it; scipy ships no types
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    contents, _ = pd.factorize(hash_texts(images["sha256"]))
    groups, _ = pd.factorize(images["group"])  # -1: none
    has_group = groups >= 0
    num_contents = contents.max(initial=-1) + 1
    num_nodes = num_contents + groups.max(initial=-1) + 1
    ends = contents[has_group], num_contents + groups[has_group]
    links = coo_matrix((np.ones(len(ends[0]), dtype=bool), ends), shape=(num_nodes, num_nodes))
    _, components = connected_components(links, directed=False)
    numbers: np.ndarray = pd.factorize(components[contents])[0]
    return numbers
