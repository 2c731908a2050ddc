"""Tell tables of several labels per image, or of numbers, from those of one class each."""

import re
from collections import Counter
from pathlib import Path

import pandas as pd

from graftline.errors import UserError

_SEPARATORS = ("|", ";", ",", "+", "/", " ")
_OF_LISTS = {"|", ";"}  # that hardly any name holds
_DECIMAL = re.compile(r"[-+]?\d+,\d+")
_BRACKETS = {"[": "]", "{": "}", "(": ")"}
_MANY = 10  # numbers: so many different ones are no names of classes, if each is that of hardly more than one image
_FLAGS = ({"0", "1"}, {"0.0", "1.0"}, {"0,0", "1,0"}, {"false", "true"})


def find_one_hot(table: pd.DataFrame) -> list[str]:
    """Return the names of columns that hold 0 and 1 only, if there are several: a table with a column per class."""
    flags = [
        str(name)
        for index, name in enumerate(table.columns)
        if set(table.iloc[:, index].dropna().astype("str").str.strip().str.lower().unique()) in _FLAGS
    ]
    return flags if len(flags) > 1 else []


def require_single_labels(labels: "pd.Series[str]", file: Path) -> None:
    """Raise a UserError if labels are lists: in brackets, or joined from others by a sign.

    A label may hold a comma or a blank, as "good, clean" does. It counts as a list where its parts are known apart from
    it: alone, or joined in another way.
    """
    unique = labels.dropna().unique().tolist()
    lists = [label for label in unique if _BRACKETS.get(label[:1]) == label[-1:]]
    if len(lists) > len(unique) / 2:
        raise _several(file, lists[0], "keep one name, without brackets")
    for sign in _SEPARATORS:
        if joined := _find_joined(unique, sign):
            raise _several(
                file, joined, f"keep one name, or write it without {sign!r} where it is the name of one class"
            )


def refuse_measurements(labels: "pd.Series[str]", file: Path) -> None:
    """Raise a UserError if labels are numbers with a decimal point, many of them, of which hardly any comes twice."""
    known, unique = labels.dropna(), labels.nunique()
    if unique < _MANY or 2 * unique <= len(known):
        return
    numbers = pd.to_numeric(known.str.replace(",", "."), errors="coerce")
    if numbers.notna().all() and (numbers % 1 != 0).any():
        raise UserError(
            f"{file} has {unique:,} numbers as labels ({known.iloc[0]}), and a classifier learns classes of several "
            "images each: write a class into that column, such as one for each range of the numbers."
        )


def _find_joined(labels: list[str], sign: str) -> str | None:
    """Return the first label that is a list with this sign, if most labels that hold it are."""
    parts = {label: [part.strip() for part in label.split(sign)] for label in labels if not _DECIMAL.fullmatch(label)}
    holding = {label: several for label, several in parts.items() if len(several) > 1}
    times = Counter(part for several in parts.values() for part in set(several))
    enough = any if sign in _OF_LISTS else all
    joined = [label for label, several in holding.items() if enough(times[part] > 1 for part in several)]
    if not joined or len(joined) < len(holding) / 2:
        return None
    if sign in _OF_LISTS:
        return joined[0]
    tags = {part for label in joined for part in holding[label]}
    if sign == " ":  # also stands between the words of a name
        is_list = len(joined) > 2 * len(tags) or (len(joined) > 1 and tags <= set(labels))
    else:
        is_list = len(joined) > len(tags) or not tags.isdisjoint(labels)
    return joined[0] if is_list else None


def _several(file: Path, label: str, way_out: str) -> UserError:
    return UserError(
        f"{file} has several labels for an image ({label}), and a classifier learns one for each: {way_out}."
    )
