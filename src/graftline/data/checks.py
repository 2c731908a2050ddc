"""Check image files in one parallel pass: each is hashed and decoded whole, as training will decode it.

What a file was found to be is remembered beside the dataset versions, by path, size and times: a second pass looks at
the files' times only, and an interrupted pass goes on where it was.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import PIL

from graftline.console import progress
from graftline.data.decode import DecodeError, Decoding, decode
from graftline.data.file_names import to_path
from graftline.data.references import open_image, read_status
from graftline.files import atomic_file

_FORMAT = 2  # raise it when a check changes its answer
_AT_ONCE = 16  # images per task: enough to make a task's own cost small, few enough for a smooth progress bar
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
    highest: int = -1  # the largest number found in integers of 16 bits; -1 in anything else


def check_images(paths: Sequence[str], decoding: Decoding, workers: int, memory: Path) -> pd.DataFrame:
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
    found: list[FileCheck] = []
    started = time.time_ns()
    try:
        with (
            progress("Checking images", total=len(paths)) as bar,
            ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        ):
            tasks = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
            try:
                for answer in pool.map(lambda task: [_check(path, decoding, known.get(path)) for path in task], tasks):
                    found += answer
                    bar.advance(bar.task_ids[0], len(answer))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # on Ctrl-C, else the rest is worked through first
    finally:
        _remember(memory, key, known, found, settled_before=started - _SETTLED_NS)
    return pd.DataFrame(found, columns=FileCheck._fields)


def _check(path: str, decoding: Decoding, known: FileCheck | None) -> FileCheck:
    try:
        stamp = (path, *read_status(path))
        if known is not None and known[:4] == stamp:
            return known
        with open_image(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            try:
                highest: list[int] = [-1]
                image = decode(file, decoding, lambda numbers: highest.append(_highest(numbers)))
            except DecodeError as error:
                return FileCheck(*stamp, sha256, 0, 0, "", error.flaw, error.reason)
            height, width, _ = image.pixels.shape
            return FileCheck(
                *stamp, sha256, width, height, image.format, "", "", extra=image.extra, highest=highest[-1]
            )
    except DecodeError as error:  # what cannot even be opened as an image
        return FileCheck(path, 0, 0, 0, "", 0, 0, "", error.flaw, error.reason)
    except FileNotFoundError:
        is_link = Path(to_path(path)).is_symlink()
        reason = "the link leads nowhere" if is_link else "there is no such file"
        return FileCheck(path, 0, 0, 0, "", 0, 0, "", "missing", reason)
    except OSError as error:
        return FileCheck(path, 0, 0, 0, "", 0, 0, "", "unreadable", error.strerror or str(error))


def _highest(numbers: np.ndarray) -> int:
    """Return the largest of unsigned integers of 16 bits; -1 for any other numbers."""
    return int(numbers.max()) if numbers.dtype == np.uint16 else -1


def _recall(memory: Path, key: str) -> dict[str, FileCheck]:
    if not memory.exists():
        return {}
    table = pd.read_parquet(memory)
    if table.attrs.get("key") != key:
        return {}
    return {row.path: row for row in (FileCheck(*values) for values in table.itertuples(index=False, name=None))}


def _remember(
    memory: Path, key: str, known: dict[str, FileCheck], found: Iterable[FileCheck], settled_before: int
) -> None:
    """Keep sound files, as flawed ones are few and worth a second look, but none that was perhaps still written to."""
    new = {check.path: check for check in found if not check.flaw and check.changed < settled_before}
    if new.items() <= known.items():
        return
    table = pd.DataFrame((known | new).values(), columns=FileCheck._fields)
    table.attrs["key"] = key
    with atomic_file(memory) as temporary:
        table.to_parquet(temporary, index=False)
