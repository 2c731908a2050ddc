"""Define what a source of images is."""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from PIL import Image

from graftline.data.decode import FORMATS
from graftline.data.references import find_url
from graftline.data.remote_cache import fetch
from graftline.errors import UserError

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
# of what we read, and of what we name if we do not
IMAGE_SUFFIXES = frozenset(
    {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    | {".heic", ".heif", ".avif", ".dcm", ".jxl", ".mpo"}
)

MOST_WEIGHT = float(np.finfo(np.float32).max)  # as which weights are kept

_BLANKS_AROUND = re.compile(r"^[\s\u200b\u2060\ufeff]+|[\s\u200b\u2060\ufeff]+$")
_LINE_BREAKS = re.compile(r"\s*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


class Source(Protocol):
    """List images; their files stay where they are and are not opened."""

    def read(self, path: Path | None) -> pd.DataFrame:
        """List the images.

        Args:
            path: where the images are, as `Ingest.path` gives it.

        Returns:
            A row per image: path (absolute) and label (None: unknown), both str; a categorical label also orders the
            classes. Optional: split ("train" | "validation" | "test"), group, weight (float), stratum. Scores are also
            told by any other column that has few values.

        Raises:
            UserError: there is nothing at ``path``, or it is not what this source reads.
        """
        ...


def require(path: Path | None, what: str) -> Path:
    """Return ``path`` as absolute path, or say what it should have been.

    Args:
        path: what the user gave.
        what: a noun for it, as in "a folder".

    Raises:
        UserError: none was given, or there is nothing.
    """
    if path is None:
        raise UserError(f"Ingest.path is not given: name {what}.")
    path = Path(re.sub("^file:/+", "/", str(path))).expanduser().absolute()
    if path.exists():
        return path
    near = get_close_matches(path.name, [other.name for other in path.parent.glob("*")], n=1)
    hint = f"did you mean '{path.with_name(near[0])}'" if near else f"give the path of {what} as Ingest.path"
    raise UserError(f"There is nothing at {path}: {hint}{'?' if near else '.'}")


def require_file(path: Path | None, what: str) -> Path:
    """As ``require``, for a file; of one at a URL, return its copy in the cache.

    Raises:
        UserError: none was given, or there is nothing.
    """
    if path is None or (url := find_url(path)) is None:
        return require(path, what)
    try:
        return fetch(url)
    except FileNotFoundError as error:
        raise UserError(f"There is nothing at {url}: give the URL of {what} as Ingest.path.") from error


@contextmanager
def told_as(given: Path | None, copy: Path) -> Iterator[None]:
    """Name in errors what was given, and not the copy of it that was read."""
    try:
        yield
    except UserError as error:
        url = None if given is None else find_url(given)
        raise (error if url is None else UserError(str(error).replace(str(copy), url))) from error.__cause__


def tidy_label(label: str) -> str:
    r"""Return the one form of a class name: in one line, no blanks around it, each letter with its accent as one sign.

    macOS writes names of folders in two signs where a keyboard writes one (Unicode's NFD and NFC). Blanks are also
    those without width, which come along when cells are copied from a page; cells of a spreadsheet can have lines.

    >>> tidy_label(" boots\u200b "), tidy_label("rubber \r\n\nboots")
    ('boots', 'rubber boots')
    """
    return unicodedata.normalize("NFC", _LINE_BREAKS.sub(" ", _BLANKS_AROUND.sub("", label)))


_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_SET = re.compile(r"[\W_]*(data|images)?[\W_]*(set)?$")  # training_set, Test-Images, valset


def find_split(name: str) -> str | None:
    """Return the split that a folder's or a table's word for it means, None for another word.

    >>> find_split("Training_Set"), find_split("val"), find_split("cat")
    ('train', 'validation', None)
    """
    return _SPLITS.get(_SET.sub("", name.strip().lower()))
