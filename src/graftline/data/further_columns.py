"""Further columns: what a source tells of its images beside label, group and the like; scores are told by their values.

They are no part of what names a dataset version, and lie beside its manifest, a row for each of its rows.
"""

import json
import logging
from pathlib import Path

import pandas as pd

from graftline.data.sources.source import tidy_label
from graftline.files import atomic_file
from graftline.words import join_names

logger = logging.getLogger(__name__)

COLUMNS_FILE = "columns.parquet"  # in a version's directory
MOST_VALUES = 20  # of a column: one with more is a name, a text or a measure, not a kind of image
_LOOKED_AT = 10_000  # rows that show most columns of many values to be such


def keep_few_valued(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that have 2 to 20 values, as categories of text, and say which these are.

    Args:
        table: (N rows) any columns.
    """
    found = {str(name): _categorize(table.iloc[:, place]) for place, name in enumerate(table.columns)}
    kept = {name: column for name, column in found.items() if column is not None and len(column.categories) > 1}
    many = [name for name, column in found.items() if column is None]
    left_out = f" ({join_names(many)} left out: more than {MOST_VALUES} values)" if many else ""
    if kept or many:
        names = f"Scores are also reported by the values of {join_names(list(kept))}"
        logger.info(f"{names if kept else 'No further column divides the scores'}{left_out}.")
    return pd.DataFrame(kept, index=table.index)


def write_columns(columns: pd.DataFrame | None, file: Path) -> None:
    """Write them into a version; what is there stays where there are none."""
    if columns is not None and not columns.columns.empty:
        with atomic_file(file) as temporary:
            columns.to_parquet(temporary, index=False, compression="zstd")


def to_json(columns: pd.DataFrame) -> "pd.Series[str]":
    """Return each row of further columns as JSON, as shards have it; there must be a column."""
    kinds = columns.groupby(list(columns), observed=True, dropna=False).ngroup()
    firsts = columns[~kinds.duplicated()]
    texts = [json.dumps(row.dropna().to_dict()) for _, row in firsts.iterrows()]
    return kinds.map(dict(zip(kinds[firsts.index], texts, strict=True)))


def from_json(texts: "pd.Series[str]") -> pd.DataFrame:
    """Return the further columns that rows of JSON tell, as categories; no columns where there is none."""
    kinds, found = pd.factorize(texts)  # -1: missing
    rows = pd.DataFrame([json.loads(text) for text in found]).astype("category")
    return rows.reindex(kinds).set_axis(texts.index)


def _categorize(values: pd.Series) -> pd.Categorical | None:
    """Return a column's values as categories of text; None where they are too many, or lists."""
    try:
        if values.iloc[:_LOOKED_AT].nunique() > MOST_VALUES:
            return None
        codes, found = pd.factorize(values)  # -1: missing
    except TypeError:
        return None
    if len(found) > MOST_VALUES:
        return None
    names = pd.Series([_name(value) for value in found], dtype="str")
    return pd.Categorical(names.reindex(codes))


def _name(value: object) -> str | None:
    """Return a value as text, None for blanks; a whole number is written as one."""
    text = value if isinstance(value, str) else str(value).removesuffix(".0")
    return tidy_label(text) or None
