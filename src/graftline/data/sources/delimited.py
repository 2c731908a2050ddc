"""Read a text file of columns as spreadsheets and scripts export it: any usual encoding, separator and quoting."""

import codecs
import csv
import itertools
import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from graftline.data.signatures import HEAD_BYTES, name_content
from graftline.errors import UserError, first_line

logger = logging.getLogger(__name__)

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_MARKS = {  # that a text may start with; UTF-32's first, as it begins like UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_PIECE = 2**20  # characters read at once
_LOOKED_AT = 50  # rows that tell the separator where the names of columns do not


class Form(NamedTuple):
    """How a text file holds its columns."""

    encoding: str
    separator: str  # one of `SEPARATORS`, or what the file says itself
    before: int  # lines before the one with the names of columns

    @property
    def in_words(self) -> str:
        """Return what separates the columns, for a sentence."""
        return SEPARATORS.get(self.separator, f"'{self.separator}'")


def find_form(file: Path, wanted: Sequence[str]) -> Form:
    """Find out how a text file holds its columns.

    The encoding is told by a byte order mark, else it is UTF-8, else Windows-1252. The separator is the one with which
    the first line has most of the ``wanted`` columns, else the one with the most columns in each of the first rows.

    Raises:
        UserError: this is no text, or there is none.
    """
    encoding = _find_encoding(file)
    with file.open(encoding=encoding, newline="") as text:
        lines = list(itertools.islice(text, _LOOKED_AT))
    if not any(line.strip() for line in lines):
        raise _no_content(file)
    if told := re.fullmatch(r'"?sep=(.)"?\s*', lines[0]):  # a word to Excel, which hides the line
        return Form(encoding, told[1], 1)

    def judge(separator: str) -> tuple[int, int, int]:
        rows = [row for row in csv.reader(lines, delimiter=separator, skipinitialspace=True) if row]
        names = [name.strip() for name in rows[0]]
        widths = {len(row) for row in rows}
        return len(set(names) & set(wanted)), widths.pop() if len(widths) == 1 else 1, len(names)

    return Form(encoding, max(SEPARATORS, key=judge), 0)


def read_delimited(file: Path, form: Form) -> pd.DataFrame:
    """Read a table of text columns, whose names have no blanks around them; cells without content are missing.

    Raises:
        UserError: a row has more values than there are columns, or a quotation mark is not closed.
    """
    with file.open(encoding=form.encoding, newline="") as text:
        reader = csv.reader(text, delimiter=form.separator, skipinitialspace=True, strict=True)
        try:
            rows = filter(any, itertools.islice(reader, form.before, None))
            names = _name_columns(next(rows))
            columns: list[list[str | None]] = [[] for _ in names]
            for row in rows:
                if any(row[len(names) :]):
                    raise _too_many(file, form, len(row), names, reader.line_num)
                for column, cell in itertools.zip_longest(columns, row[: len(names)]):
                    column.append(cell or None)
        except (csv.Error, StopIteration) as error:
            raise UserError(
                f"{file} cannot be read as a table ({first_line(error)}; line {reader.line_num:,}): "
                "look there for a quotation mark that is not closed, or not doubled within a value."
            ) from error
    return pd.DataFrame(dict(enumerate(columns)), dtype="str").set_axis(names, axis=1)


def _too_many(file: Path, form: Form, number: int, names: Sequence[str], line: int) -> UserError:
    if len(names) == 1:
        return UserError(
            f"{file} has {number:,} values in line {line:,}, separated by {form.in_words}, but only '{names[0]}' "
            "above: remove what stands over the line of column names."
        )
    return UserError(
        f"{file} has {number:,} values for {len(names):,} columns in line {line:,}, separated by {form.in_words}: "
        f"put values that hold '{form.separator}' into quotation marks."
    )


def _name_columns(row: Sequence[str]) -> list[str]:
    names = [unicodedata.normalize("NFC", name.strip()) for name in row]
    while names and not names[-1]:  # each line ends in a separator
        names.pop()
    return names


def _find_encoding(file: Path) -> str:
    """Return the encoding of a text file, after reading it once.

    Raises:
        UserError: it holds something else, or nothing.
    """
    with file.open("rb") as content:
        head = content.read(HEAD_BYTES)
        if not head.strip():
            raise _no_content(file)
        for mark, encoding in _MARKS.items():
            if head.startswith(mark):
                return encoding
        found = name_content(head)
        if found is not None and found[0] not in {"text", "JSON"}:
            raise UserError(f"{file} is no table but {found[0]}: {found[1]}, or save the table as CSV.")
        if head.count(0) > len(head) // 4:  # every second byte of Latin letters in UTF-16
            return "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
        content.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while piece := content.read(_PIECE):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            logger.warning(f"{file} is not in UTF-8 and is read as Windows-1252: save it as UTF-8 if names look wrong.")
            return "cp1252" if _decodes(file, "cp1252") else "latin-1"
    return "utf-8"


def _decodes(file: Path, encoding: str) -> bool:
    try:
        with file.open(encoding=encoding) as text:
            while text.read(_PIECE):
                pass
    except UnicodeDecodeError:
        return False
    return True


def _no_content(file: Path) -> UserError:
    return UserError(f"{file} has no content: give a table with a row per image and a line of column names above.")
