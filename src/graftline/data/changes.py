"""Count what has changed from one dataset version to the next: images added, removed, relabeled, in another split."""

import pandas as pd

from graftline.data.hashing import hash_texts

KINDS = ("added", "removed", "relabeled", "moved")


def count_changes(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count the images that were added, removed, relabeled and moved to another split.

    Images are told apart by content: a file that was renamed has not changed.

    Args:
        before: a row per image, with columns sha256, label and split.
        after: the same, later.

    Returns:
        Kind of change → split that they are in, or were if they are removed → number of images; splits without any are
        left out.
    """
    both = _numbered(before).merge(
        _numbered(after), on=["content", "copy"], how="outer", suffixes=("_before", "_after")
    )
    was_there, is_there = both["label_before"].notna(), both["label_after"].notna()
    relabeled = was_there & is_there & (both["label_before"] != both["label_after"])
    moved = was_there & is_there & (both["split_before"] != both["split_after"])
    splits = {
        "added": both.loc[is_there & ~was_there, "split_after"],
        "removed": both.loc[was_there & ~is_there, "split_before"],
        "relabeled": both.loc[relabeled, "split_after"],
        "moved": both.loc[moved, "split_after"],
    }
    return {kind: {str(split): int(n) for split, n in splits[kind].value_counts().items()} for kind in KINDS}


def _numbered(images: pd.DataFrame) -> pd.DataFrame:
    """Number the contents and the copies of each, so that they can be paired."""
    numbered = images[["label", "split"]].assign(content=hash_texts(images["sha256"]))
    numbered = numbered.sort_values(["content", "label"], ignore_index=True)
    return numbered.assign(copy=numbered.groupby("content").cumcount())
