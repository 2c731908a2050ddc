"""Read a CSV or Parquet file that lists images and their labels."""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from graftline.data.sources.source import SPLIT_NAMES, require
from graftline.errors import UserError, first_line

# An optional column of this name is used where it is there; one of another name was asked for, and must be.
_DEFAULTS = {"split": "split", "group": "group", "weight": "weight", "stratum": "stratum"}


@dataclass(frozen=True)
class Table:
    """Read a table with a row per image (Hydra target).

    Attributes:
        path: column of paths, absolute or relative to the table's folder.
        label: column of labels.
        split: column of splits (train, val or validation, test); None to ignore it.
        group: column of what must not be divided between splits, such as patient or camera; None to ignore it.
        weight: column of non-negative weights in loss and metrics; None to ignore it.
        stratum: column to stratify by, together with the label; None to ignore it.
    """

    path: str = "path"
    label: str = "label"
    split: str | None = "split"
    group: str | None = "group"
    weight: str | None = "weight"
    stratum: str | None = "stratum"

    def read(self, path: Path | None) -> pd.DataFrame:
        """List the images.

        Raises:
            UserError: no table, a missing column, a value that is no split or no weight.
        """
        file = require(path, "a CSV or Parquet table")
        table = _load(file)
        if table.empty:
            raise UserError(f"{file} has no rows: list at least one image per class.")
        images = pd.DataFrame(index=table.index)
        for name in ("path", "label", *_DEFAULTS):
            column = getattr(self, name)
            if column in table.columns:
                images[name] = table[column]
            elif column is not None and column != _DEFAULTS.get(name):
                raise UserError(_no_such_column(file, column, [str(other) for other in table.columns], f"Table.{name}"))
        for name in images.columns.drop("weight", errors="ignore"):
            images[name] = _as_text(images[name])
        images["path"] = _absolute(images["path"], file)
        if "split" in images:
            images["split"] = _as_splits(images["split"], file)
        if "weight" in images:
            images["weight"] = _as_weights(images["weight"], file)
        return images


def _load(file: Path) -> pd.DataFrame:
    suffix = file.suffix.lower()
    if suffix not in {".csv", ".parquet"}:
        raise UserError(f"{file} is no table that we read: give a .csv or .parquet file.")
    try:
        if suffix == ".parquet":
            return pd.read_parquet(file)
        return pd.read_csv(
            file,
            dtype="str",
            keep_default_na=False,  # "NA" may be the name of a class
            na_values=[""],
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not in UTF-8: save it as such.") from error
    except (ValueError, OSError) as error:  # pandas' and Arrow's own errors are of these
        raise UserError(f"{file} cannot be read as a table ({first_line(error)}): mend or replace it.") from error


def _no_such_column(file: Path, column: str, columns: list[str], argument: str) -> str:
    near = get_close_matches(column, columns, n=1, cutoff=0.5)
    hint = f"did you mean {argument}='{near[0]}'?" if near else f"set {argument} to one of {', '.join(columns[:12])}."
    return f"{file} has no column '{column}': {hint}"


def _as_text(values: "pd.Series[Any]") -> "pd.Series[str]":
    """Return text with None for what is missing; whole numbers without a decimal point."""
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    return values.astype("str").mask(values.isna(), None)


def _absolute(paths: "pd.Series[str]", file: Path) -> "pd.Series[str]":
    if paths.isna().any():
        raise UserError(f"{file} has {paths.isna().sum():,} rows without a path: fill or remove them.")
    return paths.map(lambda path: os.path.normpath(os.path.join(file.parent, path)))  # noqa: PTH118 (speed)


def _as_splits(values: "pd.Series[str]", file: Path) -> "pd.Series[str]":
    unknown = values[values.notna() & ~values.str.lower().isin(SPLIT_NAMES)]
    if not unknown.empty:
        raise UserError(
            f"{file} has the split '{unknown.iloc[0]}': use train, validation and test, "
            "or ignore the column with Table.split=None."
        )
    return values.str.lower().map(SPLIT_NAMES)


def _as_weights(values: "pd.Series[Any]", file: Path) -> "pd.Series[float]":
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = values[~(numbers >= 0)]
    if not wrong.empty:
        raise UserError(f"{file} has the weight '{wrong.iloc[0]}': weights are numbers from 0 up, one in each row.")
    return numbers.astype("float64")
