"""Find the files that a table lists: at URLs, or in other words, such as with backslashes or without extension."""

import logging
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from graftline.data.remote import require_no_secret
from graftline.data.sources.skeleton import in_url
from graftline.data.sources.source import IMAGE_SUFFIXES
from graftline.data.walk import list_folders
from graftline.errors import UserError

logger = logging.getLogger(__name__)

_NEARLY_ALL = 0.9
_LOOKED_FOR = 10_000  # paths of a longer table: where all of these are there, all are taken to be
_SAMPLE = 50  # paths that tell whether a folder is the right one
_MAX_FOLDERS = 500  # that are tried
_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+]+://", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # or a share of a Windows server


def find_files(paths: "pd.Series[str]", table: Path, url: str | None = None) -> "pd.Series[str]":
    """Return the absolute paths of the files that a table lists, and the URLs of those elsewhere.

    Whether there are files at URLs is not asked: that is found out when they are read.

    Args:
        paths: absolute, relative to the table's folder, or URLs.
        table: the file that lists them.
        url: of which it is a copy; paths are then relative to that; None: it is no copy.

    Raises:
        UserError: a URL has a password in it; or of the files on this machine nearly none is there, nor in other words.
    """
    at_url = paths.map(lambda path: _at_url(path.strip(), url, url or str(table)))
    here = paths[at_url.isna()]
    return at_url if here.empty else at_url.fillna(_find_here(here, table))


def _at_url(path: str, url: str | None, told: str) -> str | None:
    """Return the URL of a file; None for one of this machine.

    Args:
        path: that a table lists.
        url: of the table; None: it is here.
        told: the table's name in messages.
    """
    if _ADDRESS.match(path):
        scheme, _, rest = path.partition("://")
        require_no_secret(address := f"{scheme.lower()}://{rest}", f"A path in {told}")
        return address
    if url is None or path.startswith(("/", "file:")) or _DRIVE.match(path):
        return None
    scheme, _, place = url.partition("://")
    host, _, table = place.partition("/")
    path = path.replace("\\", "/")
    if scheme.startswith("http"):
        table, path = table.partition("?")[0], in_url(path)
    return f"{scheme}://{host}{posixpath.normpath(posixpath.join('/', posixpath.dirname(table), path))}"


def _find_here(paths: "pd.Series[str]", table: Path) -> "pd.Series[str]":
    """Return the absolute paths of the files of this machine that a table lists.

    Where files are not there, the usual differences between systems are tried: backslashes, capitals, Unicode form, a
    missing or another extension; where nearly all are not there, also the folders below the table's, and the one above.
    What finds nearly all of them is used and logged. No file is found for two paths.

    Args:
        paths: absolute, or relative to the table's folder.
        table: the file that lists them.

    Raises:
        UserError: nearly none is there, nor in other words.
    """
    base = table.parent.absolute()
    absolute = paths.map(lambda path: os.path.normpath(os.path.join(base, path)))  # noqa: PTH118 (speed)
    if absolute[:: len(absolute) // _LOOKED_FOR + 1].map(os.path.exists).all():
        return absolute
    there = absolute.map(os.path.exists)
    if there.all():
        return absolute
    search = _Search(paths[~there].unique().tolist(), set(absolute[there]))
    nearly_none = there.mean() <= 1 - _NEARLY_ALL
    repair = search.repair([base, *_folders_near(base)] if nearly_none else [base])
    if len(repair.found) >= _NEARLY_ALL * len(search.texts):
        logger.warning(f"{len(repair.found):,} of {len(there):,} paths in {table} are found {repair.in_words(base)}.")
        return absolute.where(there, paths.map(repair.found).fillna(absolute))
    told = f"{(~there).sum():,} of {len(there):,} files that {table} lists are not there (first: {search.texts[0]})"
    if nearly_none:
        raise UserError(f"{told}: {search.way_out(repair, base)}.")
    if repair.found:
        logger.warning(f"{told}: {search.way_out(repair, base)}.")
    return absolute


class _Repair(NamedTuple):
    """Files that were found for paths as written, below a folder."""

    found: Mapping[str, str]
    start: Path

    def in_words(self, base: Path) -> str:
        """Say what makes the difference between what is written and what was found."""
        differences = [name for name, _ in Counter(self._differences()).most_common()]
        if self.start != base:
            differences.append(f"below {os.path.relpath(self.start, base)}/")
        return " and ".join(differences)

    def _differences(self) -> Iterator[str]:
        for text, found in self.found.items():
            if text.startswith("file://"):
                yield "without 'file://'"
            if "\\" in text:
                yield "with '/' for '\\'"
            for written, name in zip(reversed(_split(text)), reversed(found.split("/")), strict=False):
                if written in {"..", name}:
                    continue
                if unicodedata.normalize("NFC", written) == unicodedata.normalize("NFC", name):
                    yield "in another Unicode form"
                elif written.strip() == name:
                    yield "without blanks around them"
                else:
                    yield "with other capitals" if _fold(written) == _fold(name) else "with another extension"


class _Search:
    """Looks for files by paths that do not exist as they are written.

    Attributes:
        texts: these paths, each once.
    """

    def __init__(self, texts: Sequence[str], taken: set[str]) -> None:
        self.texts = texts
        self._taken = taken  # files that are listed by their own names
        self._folders: dict[str, _Names] = {}

    def repair(self, starts: Sequence[Path]) -> _Repair:
        """Return what is found below the first of ``starts``, or below the only other one where nearly all are."""
        first = _Repair(self._find(self.texts, starts[0]), starts[0])
        if len(first.found) >= _NEARLY_ALL * len(self.texts):
            return first
        others = [_Repair(self._find(self.texts, start), start) for start in starts[1:] if self._suits(start)]
        others = [other for other in others if len(other.found) >= _NEARLY_ALL * len(self.texts)]
        return others[0] if len(others) == 1 else first

    def way_out(self, repair: _Repair, base: Path) -> str:
        """Say how the paths would have to be written."""
        first = self.texts[0]
        kind = "these are paths of a Windows drive, so " if _DRIVE.match(first) else ""
        if repair.found:
            return f"{len(repair.found):,} would be found {repair.in_words(base)}, so mend their names or the table"
        for start in (base, *_folders_near(base)):
            for dropped in range(1, len(_split(first))):
                if self._suits(start, dropped):
                    rest = "/".join(_split(first)[dropped:])
                    return f"{kind}write them relative to the table's folder, as '{_below(start, base)}{rest}'"
        for start in _folders_near(base):
            if self._suits(start):
                return f"several folders hold these, so write the right one in front, as '{_below(start, base)}{first}'"
        return f"{kind}give them relative to {base}, or absolute on this machine"

    def _suits(self, start: Path, dropped: int = 0) -> bool:
        """Tell whether some of the paths, spread over all, lead to files below ``start``."""
        sample = self.texts[:: len(self.texts) // _SAMPLE + 1]
        return len(self._find(sample, start, dropped)) >= _NEARLY_ALL * len(sample)

    def _find(self, texts: Sequence[str], start: Path, dropped: int = 0) -> dict[str, str]:
        """Return the files below ``start``, or below the root, by path, without the first parts that are dropped."""
        found = {}
        for text in texts:
            if dropped == 0 and _DRIVE.match(text):
                continue
            is_absolute = text.removeprefix("file://").startswith("/")
            root = "/" if is_absolute and dropped == 0 else str(start)
            file = self._follow(root, _split(text)[dropped:])
            if file is not None and file not in self._taken:
                found[text] = file
        times = Counter(found.values())
        return {text: file for text, file in found.items() if times[file] == 1}

    def _follow(self, folder: str, parts: Sequence[str]) -> str | None:
        for index, part in enumerate(parts):
            if part == "..":  # only in front
                folder = os.path.dirname(folder)  # noqa: PTH120 (speed)
                continue
            names = self._folders.get(folder) or self._folders.setdefault(folder, _Names(folder))
            name = names.find_file(part) if index == len(parts) - 1 else names.find(part)
            if name is None:
                return None
            folder = os.path.join(folder, name)  # noqa: PTH118 (speed)
        return folder if parts else None


class _Names:
    """The names in a folder, to be found in other words."""

    def __init__(self, folder: str) -> None:
        try:
            self._names = os.listdir(folder)  # noqa: PTH208 (strings)
        except OSError:
            self._names = []

    @cached_property
    def _by_fold(self) -> Mapping[str, list[str]]:
        return _group(self._names, self._names)

    @cached_property
    def _by_stem(self) -> Mapping[str, list[str]]:
        images = [name for name in self._names if _stem(name) != name]
        return _group(map(_stem, images), images)

    def find(self, written: str) -> str | None:
        """Return the name that differs at most in capitals or Unicode form, None for none or several."""
        names = self._by_fold.get(_fold(written), [])
        return written if written in names else (names[0] if len(names) == 1 else None)

    def find_file(self, written: str) -> str | None:
        """Return an image's name, which may also differ in its extension."""
        if (name := self.find(written)) is not None:
            return name
        names = self._by_stem.get(_fold(written), []) or self._by_stem.get(_fold(_stem(written)), [])
        return names[0] if len(names) == 1 else None


def _group(keys: "Sequence[str] | map[str]", names: Sequence[str]) -> Mapping[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for key, name in zip(keys, names, strict=True):
        groups[_fold(key)].append(name)
    return groups


@lru_cache(maxsize=2**16)
def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def _stem(name: str) -> str:
    """Return a name without an image's extension."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 (speed)
    return stem if suffix.strip().lower() in IMAGE_SUFFIXES else name


def _split(text: str) -> list[str]:
    path = posixpath.normpath(text.removeprefix("file://").replace("\\", "/"))
    return [part for part in path.split("/") if part not in {"", "."}]


def _folders_near(base: Path) -> list[Path]:
    """Return the folders below a table's, two levels deep, and the one above; those beside it are other data sets."""
    below = _list(base)
    deeper = [folder for parent in below for folder in _list(parent)]
    return [base.parent, *below, *deeper][:_MAX_FOLDERS]


def _list(folder: Path) -> list[Path]:
    try:
        return list_folders(folder)
    except UserError:  # it may not be read, so it holds nothing for us
        return []


def _below(start: Path, base: Path) -> str:
    """Return what stands in front of a path to lead from ``base`` to below ``start``."""
    return "" if start == base else f"{os.path.relpath(start, base)}/"
