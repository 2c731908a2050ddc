"""What has changed between two versions is counted as one would count it by hand, copies too."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from graftline.data.changes import count_changes


def make(seed: int, count: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "sha256": [f"{number:064x}" for number in draw.integers(0, 40, count)],
            "label": draw.choice(["cat", "dog"], count),
            "split": draw.choice(["train", "validation", "test"], count),
        }
    )


@pytest.mark.parametrize("seed", range(5))
def test_they_are_those_of_pairs_of_copies(seed: int) -> None:
    before, after = make(seed, 60), make(seed + 100, 70)
    expected: dict[str, Counter[str]] = {kind: Counter() for kind in ("added", "removed", "relabeled", "moved")}
    for content in {*before["sha256"], *after["sha256"]}:
        was = before[before["sha256"] == content].sort_values("label", kind="stable")
        now = after[after["sha256"] == content].sort_values("label", kind="stable")
        for (_, old), (_, new) in zip(was.iterrows(), now.iterrows(), strict=False):
            expected["relabeled"][new["split"]] += old["label"] != new["label"]
        expected["added"].update(now["split"].iloc[len(was) :])
        expected["removed"].update(was["split"].iloc[len(now) :])
    counted = count_changes(before, after)
    for kind in ("relabeled", "added", "removed"):
        assert sum(counted[kind].values()) == sum(expected[kind].values())


def test_nothing_has_changed_where_rows_are_in_another_order() -> None:
    images = make(0, 60).drop_duplicates("sha256")
    assert count_changes(images, images.iloc[::-1]) == {"added": {}, "removed": {}, "relabeled": {}, "moved": {}}
    moved = images.assign(split=images["split"].where(images["sha256"] != images["sha256"].iloc[0], "elsewhere"))
    assert count_changes(images, moved)["moved"] == {"elsewhere": 1}
