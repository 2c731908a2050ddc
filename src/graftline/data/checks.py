"""Check image files in one parallel pass: each is hashed and decoded whole, as training will decode it.

What a file was found to be is remembered beside the dataset versions, by path, size and times: a second pass looks at
the files' times only, and an interrupted pass goes on where it was. A path that no pass has asked for in 90 days is
forgotten.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import PIL

from graftline.console import counted
from graftline.data.decode import DecodeError, Decoding, decode
from graftline.data.file_names import to_path
from graftline.data.hashing import hash_texts
from graftline.data.image_bytes import open_image, read_status
from graftline.data.percentiles import spread
from graftline.data.rows import is_repeated, read_parquet
from graftline.errors import UnreachableError, UserError, first_line
from graftline.execution import available_cores
from graftline.files import atomic_file

_FORMAT = 3  # raise it when a check changes its answer
_AT_ONCE = 16  # images per task: enough to make a task's own cost small, few enough for a smooth progress bar
_IN_A_TABLE = 8192  # answers, until they are put away in columns
_DAY = 86_400  # seconds
_KEPT_DAYS = 90  # since a pass last asked for a path
_RENEWED_DAYS = 30  # after which it is noted anew that a path was asked for
_EXTREMES = (0.1, 99.9)  # percentiles: a few pixels that are hot or dead do not count
_SETTLED_NS = 100_000_000  # a tick of any kernel's clock is shorter: later than this after a change, a new one shows


class FileCheck(NamedTuple):
    """Hold what was found in one file."""

    path: str  # absolute
    size: int  # bytes; with the two times (nanoseconds) it tells whether the file has changed since
    modified: int
    changed: int  # also moves where a copying tool sets `modified` back
    sha256: str  # of the file's bytes; empty where it could not be read
    width: int  # pixels, as decoded (0 where it could not be)
    height: int
    format: str  # what the content is, as in decode.Decoded
    flaw: str  # a decoding.Flaw, or empty
    reason: str
    extra: str = ""  # the extra of graftline that has read it; empty for none
    low: int = -1  # between which numbers integers of more than 8 bits lie, but for a few; -1 in anything else
    high: int = -1


Paths: TypeAlias = "Sequence[str] | pd.api.extensions.ExtensionArray"
_TYPES = {name: "int64" if kind is int else "str" for name, kind in FileCheck.__annotations__.items()}


def with_checks(images: pd.DataFrame, decoding: Decoding, workers: int, memory: Path) -> pd.DataFrame:
    """Return images with what was found in the file of each: the fields of `FileCheck` that are not about the file.

    Args:
        images: with the column path, by which they are ordered; a file may be listed several times.
        decoding: as in `check_images`, like the rest.
        workers: number of threads.
        memory: of earlier passes.
    """
    again = is_repeated(images["path"])
    paths = images.loc[~again, "path"] if again.any() else images["path"]
    checks = check_images(paths.array, decoding, workers, memory)
    checks = checks.drop(columns=["path", "size", "modified", "changed"])
    checks = checks.take(np.cumsum(~again) - 1) if again.any() else checks
    return pd.concat([images, checks.set_axis(images.index)], axis=1)


def check_images(paths: Paths, decoding: Decoding, workers: int, memory: Path) -> pd.DataFrame:
    """Check image files in parallel, with a progress bar.

    Threads are enough: hashing and decoding run outside Python's lock, and there is no fork to fear.

    Args:
        paths: absolute paths, each once.
        decoding: how files become pixels; images of more than its pixels are flawed.
        workers: number of threads; 0 for one per core.
        memory: a Parquet file of what is known from earlier passes; it is read and renewed.

    Returns:
        One row per path in the given order, with the fields of `FileCheck` as columns.
    """
    key = f"{_FORMAT} {decoding} {PIL.__version__}"  # what else an answer depends on
    known = _recall(memory, key)
    # put away in tables, as a million tuples take a gigabyte, and without the paths, which the caller has
    found, answers = [_table([]).drop(columns="path")], list[FileCheck]()
    started, is_new, today = time.time_ns(), False, int(time.time() // _DAY)
    try:
        with (
            counted("Checking images", len(paths)) as advance,
            ThreadPoolExecutor(workers or available_cores()) as pool,
        ):
            try:
                for some in _in_parts(paths, _IN_A_TABLE):
                    earlier = known.pick(some)
                    check = partial(_check_some, decoding=decoding, known=earlier)
                    for answer in pool.map(check, _in_parts(some, _AT_ONCE)):
                        answers += answer
                        advance(len(answer))
                    is_new |= any(earlier.get(one.path) is not one for one in answers)
                    found.append(_table(answers).drop(columns="path"))
                    answers = []
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # on Ctrl-C, else the rest is worked through first
    finally:
        is_new |= bool(answers)  # of an interrupted pass
        is_new |= bool((known.seen[known.is_picked] < today - _RENEWED_DAYS).any())
        left = known.left(today - _KEPT_DAYS)
        del known  # a million rows take a quarter of a gigabyte each time
        checks = pd.concat([*found, _table(answers).drop(columns="path")], ignore_index=True)
        found.clear()
        checks.insert(0, "path", pd.Series(paths[: len(checks)], dtype="str"))
        if is_new:
            _remember(memory, key, left, checks.assign(seen=today), settled_before=started - _SETTLED_NS)
    return checks


def _in_parts(paths: Paths, size: int) -> Iterator[list[str]]:
    return (list(paths[start : start + size]) for start in range(0, len(paths), size))


def _check_some(paths: Sequence[str], decoding: Decoding, known: Mapping[str, FileCheck]) -> list[FileCheck]:
    return [_check(path, decoding, known.get(path)) for path in paths]


def _check(path: str, decoding: Decoding, known: FileCheck | None) -> FileCheck:
    try:
        stamp = (path, *read_status(path))
        if known is not None and known[:4] == stamp:
            return known
        with open_image(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            try:
                limits = [(-1, -1)]
                image = decode(file, decoding, lambda numbers: limits.append(_limits(numbers)))
            except DecodeError as error:
                return FileCheck(*stamp, sha256, 0, 0, "", error.flaw, error.reason)
            height, width, _ = image.pixels.shape
            return FileCheck(*stamp, sha256, width, height, image.format, "", "", image.extra, *limits[-1])
    except DecodeError as error:  # what cannot even be opened as an image
        return FileCheck(path, 0, 0, 0, "", 0, 0, "", error.flaw, error.reason)
    except FileNotFoundError:
        is_link = Path(to_path(path)).is_symlink()
        reason = "the link leads nowhere" if is_link else "there is no such file"
        return FileCheck(path, 0, 0, 0, "", 0, 0, "", "missing", reason)
    except OSError as error:
        return FileCheck(path, 0, 0, 0, "", 0, 0, "", "unreadable", error.strerror or str(error))
    except UnreachableError:
        raise
    except UserError as error:  # there is no access to it alone
        return FileCheck(path, 0, 0, 0, "", 0, 0, "", "unreadable", first_line(error))


def _limits(numbers: np.ndarray) -> tuple[int, int]:
    """Return between which numbers integers of more than 8 bits lie, but for a few; -1 twice for any others."""
    if not np.issubdtype(numbers.dtype, np.integer) or numbers.dtype.itemsize == 1:
        return -1, -1
    low, high = np.percentile(spread(numbers), _EXTREMES)
    return int(low), int(high)


def _table(checks: Sequence[FileCheck]) -> pd.DataFrame:
    return pd.DataFrame(list(checks), columns=FileCheck._fields).astype(_TYPES)


class _Known:
    """What earlier passes have found; looked up by numbers that stand for paths, which take a twentieth of their room.

    Args:
        table: the fields of `FileCheck` as columns.
        seen: when a pass last asked for each row's path, in days since 1970.
    """

    def __init__(self, table: pd.DataFrame, seen: np.ndarray) -> None:
        self.table, self.seen = table, seen
        self.is_picked = np.zeros(len(table), dtype=bool)
        numbers = hash_texts(table["path"])
        self._order = np.argsort(numbers)
        self._numbers = numbers[self._order]

    def pick(self, paths: Sequence[str]) -> dict[str, FileCheck]:
        """Return what is known of some files."""
        if self.table.empty:
            return {}
        numbers = hash_texts(pd.Series(paths, dtype="str"))
        places = np.searchsorted(self._numbers, numbers).clip(max=len(self._numbers) - 1)
        rows = self._order[places[self._numbers[places] == numbers]]
        self.is_picked[rows] = True
        picked = self.table.iloc[rows].itertuples(index=False, name=None)
        return {check.path: check for check in (FileCheck(*values) for values in picked)}

    def left(self, since: int) -> pd.DataFrame:
        """Return what was not looked up, but by an earlier pass since a day; with the column "seen"."""
        rows = ~self.is_picked & (self.seen >= since)
        return self.table[rows].assign(seen=self.seen[rows])


def _recall(memory: Path, key: str) -> _Known:
    table = read_parquet(memory) if memory.exists() else _table([])
    if table.attrs.get("key") != key:
        table = _table([])
    seen = table["seen"].to_numpy() if "seen" in table else np.full(len(table), int(time.time() // _DAY))
    return _Known(table[list(FileCheck._fields)].astype(_TYPES), seen)


def _remember(memory: Path, key: str, left: pd.DataFrame, found: pd.DataFrame, settled_before: int) -> None:
    """Keep sound files, as flawed ones are few and worth a second look, but none that was perhaps still written to."""
    is_kept = (found["flaw"] == "") & (found["changed"] < settled_before)
    new = found if is_kept.all() else found[is_kept]
    table = new if left.empty else pd.concat([left, new], ignore_index=True)  # which copies both
    table.attrs["key"] = key
    with atomic_file(memory) as temporary:
        table.to_parquet(temporary, index=False)
