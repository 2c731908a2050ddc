"""Read a CSV or Parquet file that lists images and their labels."""

import csv
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from graftline.data.references import find_url
from graftline.data.sources.delimited import find_form, read_delimited
from graftline.data.sources.labels import find_one_hot, refuse_measurements, require_single_labels
from graftline.data.sources.repair import find_files
from graftline.data.sources.source import (
    IMAGE_SUFFIXES,
    MOST_WEIGHT,
    TABLE_SUFFIXES,
    find_split,
    require_file,
    tidy_label,
    told_as,
)
from graftline.errors import UserError, first_line
from graftline.words import join_names

# An optional column of this name is used where it is there; one of another name was asked for, and must be.
_DEFAULTS = {"split": "split", "group": "group", "weight": "weight", "stratum": "stratum"}

_SAVE = "save the sheet as CSV"
_OTHERS = {  # tables that we do not read, and the way out
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), _SAVE),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "save it as CSV, with a row per image"),
    **dict.fromkeys((".feather", ".arrow", ".orc"), "save it as Parquet"),
    ".txt": "name it .csv if it is a table of columns",
    ".gz": "unpack it",
}


@dataclass(frozen=True)
class Table:
    """Read a table with a row per image (Hydra target).

    Attributes:
        path: column of paths, absolute or relative to the table's folder, or of URLs.
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
        """List the images, with all columns of the table that have no other part.

        Raises:
            UserError: no table, a missing column, a value that is no split or no weight, labels that are lists or
                measured numbers, or nearly none of the files is there.
        """
        file = require_file(path, "a table, as CSV or Parquet")
        with told_as(path, file):
            return self._read(file, None if path is None else find_url(path))

    def _read(self, file: Path, url: str | None) -> pd.DataFrame:
        table = self._load(file)
        if table.empty:
            raise UserError(f"{file} has no rows: list at least one image per class.")
        images = pd.DataFrame(index=table.index)
        for name in ("path", "label", *_DEFAULTS):
            column = getattr(self, name)
            if column in table.columns:
                images[name] = _only(table, column, file)
            elif column is not None and column != _DEFAULTS.get(name):
                raise UserError(self._no_such_column(table, name, file))
        for name in images.columns.drop("weight", errors="ignore"):
            images[name] = _as_text(images[name])
        for name in images.columns.intersection(["label", "split", "group", "stratum"]):
            tidy = images[name].map(tidy_label, na_action="ignore")
            images[name] = tidy.mask(tidy == "", None)
        require_single_labels(images["label"], file)
        refuse_measurements(images["label"], file)
        if "split" in images:
            images["split"] = _as_splits(images["split"], file)
        if "weight" in images:
            images["weight"] = _as_weights(images["weight"], file)
        _require_paths(images["path"], file)
        images["path"] = find_files(images["path"], file, url)
        return pd.concat([images, table[self._further(table)]], axis=1)

    def _further(self, table: pd.DataFrame) -> list[str]:
        """Return the names of the columns that are none of ours, and could not be taken for one."""
        ours = {"", "path", "label", *_DEFAULTS, self.path, self.label, *(getattr(self, name) for name in _DEFAULTS)}
        return [name for name in table.columns.drop_duplicates(keep=False) if name not in ours]

    def read_paths(self, file: Path) -> pd.DataFrame:
        """List images whose labels do not matter, as those that are to be classified.

        Returns:
            A row per image: name, as the table has it, and path (absolute), both str.

        Raises:
            UserError: no table, no column of paths, a row without one, or nearly none of the files is there.
        """
        table = self._load(file)
        if self.path not in table.columns:
            raise UserError(self._no_such_column(table, "path", file))
        if table.empty:
            raise UserError(f"{file} has no rows: list at least one image.")
        names = _as_text(_only(table, self.path, file))
        _require_paths(names, file)
        return pd.DataFrame({"name": names, "path": find_files(names, file)})

    def _load(self, file: Path) -> pd.DataFrame:
        suffix = file.suffix.lower()
        if suffix not in TABLE_SUFFIXES:
            way_out = _OTHERS.get(suffix, "give a .csv, .tsv or .parquet file")
            raise UserError(f"{file} is no table that we read: {way_out}.")
        try:
            if suffix != ".parquet":
                form = find_form(file, [self.path, self.label])
                table = read_delimited(file, form)
                table.attrs["separator"] = form.in_words
                return table
            table = pd.read_parquet(file).reset_index(drop=True)  # rows of one table may have one index
            return table.set_axis([str(name).strip() for name in table.columns], axis=1)
        except UserError:
            raise
        except (ValueError, OSError, csv.Error) as error:  # pandas' and Arrow's own errors are of the first two
            raise UserError(f"{file} cannot be read as a table ({first_line(error)}): mend or replace it.") from error

    def _no_such_column(self, table: pd.DataFrame, name: str, file: Path) -> str:
        """Say that there is no column for ``name``, and how it comes to be."""
        column, names = getattr(self, name), [str(other) for other in table.columns]
        told = f"{file} has no column '{column}'"
        if (classes := find_one_hot(table)) and name in {"path", "label"}:
            return (
                f"{told}, but a column of 0 and 1 for each class ({join_names(classes)}): write each image's class "
                f"into one column, '{self.label}', and name the column of paths with Table.path if it is not 'path'."
            )
        if any(Path(cell).suffix.lower() in IMAGE_SUFFIXES for cell in names):
            return f"{told}, as its first line is an image's: put a line of column names above, such as path,label."
        if len(names) == 1 and column in re.split(r"[,;\t|]", names[0]):
            return f"{told}, as each of its lines is in quotation marks as a whole: remove those."
        if len(names) == 1:
            return f"{told}, only one column: separate columns by commas, semicolons, tabs or vertical bars."
        if near := get_close_matches(column.lower(), [other.lower() for other in names], n=1, cutoff=0.5):
            nearest = next(other for other in names if other.lower() == near[0])
            return f"{told}: did you mean Table.{name}='{nearest}'?"
        separated = f", which {table.attrs['separator']} separate" if "separator" in table.attrs else ""
        return f"{told}: set Table.{name} to one of {join_names(names, at_most=12)}{separated}."


def _only(table: pd.DataFrame, column: str, file: Path) -> "pd.Series[Any]":
    """Return the one column of a name."""
    values = table[column]
    if isinstance(values, pd.DataFrame):
        raise UserError(f"{file} has {values.shape[1]} columns '{column}': rename all but one.")
    return values


def _as_text(values: "pd.Series[Any]") -> "pd.Series[str]":
    """Return text with None for what is missing; whole numbers without a decimal point.

    pandas writes a column of whole numbers as 3.0 once a cell is empty: it would be another class than 3 was before.
    """
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    text = values.astype("str").mask(values.isna(), None)
    return text.str.removesuffix(".0") if text.dropna().str.fullmatch(r"-?\d+\.0").all() else text


def _require_paths(paths: "pd.Series[str]", file: Path) -> None:
    if paths.isna().any():
        raise UserError(f"{file} has {paths.isna().sum():,} rows without a path: fill or remove them.")


def _as_splits(values: "pd.Series[str]", file: Path) -> "pd.Series[str]":
    splits = values.map(find_split, na_action="ignore")
    unknown = values[values.notna() & splits.isna()]
    if not unknown.empty:
        told = join_names([f"'{name}'" for name in unknown.unique()])
        raise UserError(
            f"{file} has the split {told}: use train, validation and test, or ignore the column with Table.split=None."
        )
    return splits


def _as_weights(values: "pd.Series[Any]", file: Path) -> "pd.Series[float]":
    if pd.api.types.is_string_dtype(values) and values.dropna().str.fullmatch(r"\s*\d*(,\d+)?\s*").all():
        values = values.str.replace(",", ".")  # a decimal comma
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = values[~numbers.between(0, MOST_WEIGHT)]
    if not wrong.empty:
        raise UserError(
            f"{file} has the weight '{wrong.iloc[0]}': weights are numbers from 0 to {MOST_WEIGHT:.1e}, one in each "
            "row."
        )
    return numbers.astype("float64")
