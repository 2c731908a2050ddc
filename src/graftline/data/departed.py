"""Departed images: those that earlier versions of a data set had, so that one that comes back keeps its split."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from graftline.data.hashing import hash_rows
from graftline.files import atomic_file

HISTORY_COLUMNS = ("sha256", "group", "split")


def find_departed(
    manifest: pd.DataFrame, histories: Iterable[pd.DataFrame], left_out: pd.DataFrame | None
) -> pd.DataFrame:
    """Return the rows of histories, and of the images left out now, that a manifest does not have."""
    columns = list(HISTORY_COLUMNS)
    rows = [manifest[columns], *(history[columns] for history in histories)]
    if left_out is not None:
        rows.append(left_out.assign(split=pd.Series(None, index=left_out.index, dtype="str"))[columns])
    here, *before = (rows_of.astype("str") for rows_of in rows)  # a column of nothing but None would be of objects
    known = hash_rows(here)
    gone = [rows_of[~np.isin(hash_rows(rows_of), known)] for rows_of in before]
    departed = pd.concat([here[:0], *gone], ignore_index=True).drop_duplicates()
    return departed.sort_values(columns, ignore_index=True)


def write_departed(departed: pd.DataFrame, file: Path) -> None:
    """Write them; no file where there are none."""
    if not departed.empty:
        with atomic_file(file) as temporary:
            departed.to_parquet(temporary, index=False, compression="zstd")
