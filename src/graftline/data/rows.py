"""Sort, compare and fill columns of texts as Arrow holds them: pandas' own ways take hundreds of bytes per row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from graftline.data.hashing import hash_texts


def order_by(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Return the rows (N,) in the order of some columns, missing values last; equal rows stay in order.

    >>> order_by(pd.DataFrame({"a": ["y", None, "x", "x"], "b": ["1", "1", "2", "1"]}), ["a", "b"])
    array([3, 2, 0, 1])
    """
    texts = pa.table({name: pa.array(table[name], from_pandas=True) for name in columns})
    order = pc.sort_indices(texts, sort_keys=[(name, "ascending") for name in columns])
    rows: np.ndarray = order.to_numpy().astype(np.int64, copy=False)
    return rows


def sorted_by(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows in the order of some columns, with the index that they had: the table itself if they are so."""
    order = order_by(table, columns)
    return table if (order == np.arange(len(order))).all() else table.take(order)


def is_repeated(texts: "pd.Series[str]") -> np.ndarray:
    """Tell (N,) which texts are the same as the one before them.

    >>> is_repeated(pd.Series(["a", "a", "b", "a"]))
    array([False,  True, False, False])
    """
    values = pa.chunked_array(pa.array(texts, from_pandas=True))
    repeated = np.zeros(len(texts), dtype=bool)
    repeated[1:] = pc.equal(values[1:], values[:-1]).to_numpy()
    return repeated


def is_copied(texts: "pd.Series[str]") -> "pd.Series[bool]":
    """Tell (N,) which texts occur several times.

    >>> is_copied(pd.Series(["a", "b", "a"])).tolist()
    [True, False, True]
    """
    copied = pd.Series(hash_texts(texts)).duplicated(keep=False).to_numpy(copy=True)
    copied[copied] = texts[copied].duplicated(keep=False).to_numpy()  # two texts may have one number
    return pd.Series(copied, index=texts.index)


def give_back_memory() -> None:
    """Give back to the system what Arrow has freed and keeps for what comes next."""
    pa.default_memory_pool().release_unused()


def read_parquet(file: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a table; what Arrow has needed to read it, as much again, is given back."""
    table = pd.read_parquet(file, columns=columns)
    give_back_memory()
    return table


def named(codes: npt.NDArray[np.integer[Any]], names: Sequence[str], index: pd.Index) -> "pd.Series[str]":
    """Return the name that each code (N,) stands for, None for -1.

    >>> named(np.array([1, -1, 0]), ["a", "b"], pd.RangeIndex(3)).tolist()
    ['b', nan, 'a']
    """
    return pd.Series(pd.Categorical.from_codes(codes, pd.Index(list(names))), index=index).astype("str")
