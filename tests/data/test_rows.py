"""Columns of texts sorted and compared by Arrow, against pandas, whose ways take more room."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from graftline.data.departed import HISTORY_COLUMNS, find_departed
from graftline.data.hashing import hash_rows
from graftline.data.inherit import inherit
from graftline.data.manifest import digest_splits
from graftline.data.rows import is_copied, is_repeated, named, order_by, sorted_by

ROWS = 500


def texts(seed: int, *, missing: float = 0.0, values: int = 40) -> "pd.Series[str]":
    """Return texts of which many are the same, in several pieces, as Arrow puts tables together."""
    chance = np.random.default_rng(seed)
    words = np.array([f"{'äz/é'[number % 4]}{number:03}" for number in range(values)])
    found = pd.Series(words[chance.integers(0, values, ROWS)], dtype="str")
    found[chance.random(ROWS) < missing] = None
    pieces: pd.Series[str] = pd.concat([found.iloc[: ROWS // 3], found.iloc[ROWS // 3 :]])
    return pieces


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_rows_are_ordered_as_pandas_orders_them(missing: float) -> None:
    table = pd.DataFrame({"a": texts(1), "b": texts(2, missing=missing), "at": np.arange(ROWS)})
    expected = table.sort_values(["a", "b"], kind="stable")
    pd.testing.assert_frame_equal(sorted_by(table, ["a", "b"]), expected)
    assert order_by(table, ["a", "b"]).tolist() == expected["at"].tolist()
    assert sorted_by(expected, ["a", "b"]) is expected, "no copy of what is in order"
    assert sorted_by(table[:0], ["a", "b"]).empty


def test_repeated_and_copied_texts_are_those_of_pandas() -> None:
    for column in (texts(3), texts(4, values=5).sort_values(), texts(5, values=10_000), texts(6)[:0], texts(6)[:1]):
        assert is_repeated(column).tolist() == (column == column.shift()).tolist()
        pd.testing.assert_series_equal(is_copied(column), column.duplicated(keep=False), check_names=False)


def test_names_stand_for_codes() -> None:
    names, codes = ["train", "validation", "test"], np.random.default_rng(0).integers(-1, 3, ROWS)
    found = named(codes, names, pd.RangeIndex(ROWS))
    assert found.dtype == "str"
    assert found.astype(object).where(found.notna(), None).tolist() == [(*names, None)[code] for code in codes]


def test_departed_rows_are_those_that_pandas_would_find() -> None:
    parts = [
        pd.DataFrame({name: texts(10 * part + at, missing=0.1, values=6) for at, name in enumerate(HISTORY_COLUMNS)})
        for part in range(3)
    ]
    manifest, before, earlier = parts
    both = pd.concat(parts, ignore_index=True)
    expected = both[~both.duplicated() & (both.index >= ROWS)].sort_values(list(HISTORY_COLUMNS), ignore_index=True)
    pd.testing.assert_frame_equal(find_departed(manifest, [before, earlier], None), expected)
    assert len(np.unique(hash_rows(both))) == len(both.drop_duplicates())


def test_the_digest_of_a_split_is_of_its_rows_in_order() -> None:
    table = pd.DataFrame({"sha256": texts(1), "label": texts(2), "split": "train"})
    in_order = table.sort_values(["sha256", "label"])
    assert digest_splits(table) == digest_splits(in_order) == digest_splits(table.sample(frac=1, random_state=0))
    assert digest_splits(table)["train"] != digest_splits(table[1:])["train"]


def test_an_ingest_makes_no_second_copy_of_what_is_in_order_and_sound() -> None:
    """Each would take its room beside the first: hundreds of bytes per image."""
    table = pd.DataFrame({"path": texts(1).sort_values(ignore_index=True), "label": "a"})
    before = pa.total_allocated_bytes()
    again = sorted_by(table, ["path", "label"])
    assert again is table
    assert pa.total_allocated_bytes() == before
    history = pd.DataFrame({"sha256": texts(7), "group": None, "split": "test"}).astype("str")
    splits, leaves = inherit(history[["sha256", "group"]], history)
    assert set(splits) == {"test"}
    assert not leaves.any()
