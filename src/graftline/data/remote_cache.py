"""Keep files at URLs in a cache on this machine's disk.

A file is downloaded once, as a whole. The cache may hold GRAFTLINE_REMOTE_GB (50); what was not read for longest goes,
but for the indices of shards, so that who only lists images needs no shard again.
"""

import io
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from graftline.data.references import find_place, find_url
from graftline.data.remote import download, remote_status, statuses
from graftline.errors import UnreachableError, first_line
from graftline.files import cache_directory, digest
from graftline.locks import Lock

logger = logging.getLogger(__name__)

INDEX_SUFFIX = ".index.parquet"  # of what is known of a shard, some 40 bytes per image
STATE_SUFFIX = ".state"  # of the note which state of its shard an index at a URL is of
_WORTH_A_LINE = 10_000_000  # bytes
_FRESH = 60.0  # seconds in which a use is not noted again
_LONGEST_NAME = 60  # letters of a file's name in the cache, behind its digest
_LOOK_SHARE = 0.01  # of the limit of the cache that one process downloads between two looks at all of its files
_ABANDONED = 86_400.0  # seconds without a byte, after which a download is nobody's
_TRIES = 3  # to open a file that others remove in the same moment

_unseen_bytes = math.inf  # that this process has downloaded since it looked at all files of the cache


def open_url(url: str) -> io.BufferedReader:
    """Open a file of the cache with the content of a URL, which is downloaded unless it is there.

    Raises:
        OSError: there is no such file.
        UserError: it cannot be reached, or the cache is too small or cannot be written to.
    """
    for _ in range(_TRIES):
        file = fetch(url)
        with suppress(FileNotFoundError), _caching(url):
            return file.open("rb")
    raise UnreachableError(
        f"Other processes remove {url} from the cache before it is read, for want of room: give GRAFTLINE_REMOTE_GB a "
        "larger number."
    )


def cached_file(url: str) -> Path:
    """Return where the cache keeps what a URL holds now, whether it is there yet or not.

    Raises:
        OSError: there is no such file.
        UserError: it cannot be reached.
    """
    name = re.sub(r"[^\w.-]", "_", url.partition("?")[0].rpartition("/")[2])[-_LONGEST_NAME:]
    return cache_directory() / "remote" / f"{digest([url, *remote_status(url)])}-{name}"


def fetch(url: str) -> Path:
    """Return a file of the cache with the content of a URL, which is downloaded unless it is there.

    Raises:
        OSError: there is no such file.
        UserError: it cannot be reached, or the cache cannot be written to.
    """
    _limit()  # a mistake in it is told before anything is downloaded
    file = cached_file(url)
    with _caching(url):
        try:
            if time.time() - file.stat().st_mtime > _FRESH:
                os.utime(file)  # the time of its last use
        except FileNotFoundError:
            with Lock(file.with_name(f"{file.name}.lock"), shared=False, on_wait=lambda: None, temporary=True):
                if not file.exists():
                    _fill(file, url)
    return file


def _fill(file: Path, url: str) -> None:
    """Download what a URL holds into the cache."""
    if (size := remote_status(url).size) >= _WORTH_A_LINE:
        logger.info(f"Downloading {url} ({size / 1e6:,.0f} MB)")
    if shutil.disk_usage(file.parent).free < size:  # the limit may have been lowered
        _evict(file, _limit())
    download(url, file)
    _note_download(file)


@contextmanager
def _caching(url: str) -> Iterator[None]:
    """Raise an UnreachableError for a fault of the cache during the block, which tells nothing of the file at a URL."""
    try:
        yield
    except FileNotFoundError:  # which the storage says
        raise
    except OSError as error:
        folder, reason = cache_directory() / "remote", error.strerror or first_line(error)
        raise UnreachableError(
            f"{url} cannot be kept in {folder} ({reason}): make room there, lower GRAFTLINE_REMOTE_GB, allow writing "
            "there, or let XDG_CACHE_HOME name another folder, then run the same command again."
        ) from error


def _limit() -> float:
    """Return how many bytes the cache may hold.

    Raises:
        UnreachableError: GRAFTLINE_REMOTE_GB is no number above 0.
    """
    told = os.environ.get("GRAFTLINE_REMOTE_GB", "50")
    with suppress(ValueError):
        if (limit := float(told) * 1e9) > 0:
            return limit
    raise UnreachableError(f"GRAFTLINE_REMOTE_GB is {told!r}: give the gigabytes that the cache may hold, such as 200.")


def warn_of_small_cache(references: Iterable[str]) -> None:
    """Warn where files at URLs, as far as their sizes are known, are more than the cache holds.

    Args:
        references: of the images that are read again and again, each time in another order.
    """
    if not statuses:
        return
    places = ((find_place(reference), reference) for reference in references)
    urls = {find_url(reference if place is None else place.shard) for place, reference in places}
    total = sum(statuses[url].size for url in urls if url in statuses)
    if total > _limit():
        _say_small(total, _limit())


@lru_cache
def _say_small(total: int, limit: float) -> None:
    """Say it once."""
    logger.warning(
        f"The images lie in {total / 1e9:.3g} GB at URLs, of which the cache holds {limit / 1e9:.3g} GB: each epoch "
        "downloads most of them again. Give GRAFTLINE_REMOTE_GB a larger number."
    )


def _note_download(newest: Path) -> None:
    """Look whether the cache is within its limit: after the first download, and each hundredth of that limit."""
    global _unseen_bytes
    limit = _limit()
    with suppress(FileNotFoundError):  # another process has just removed it, and looked at all files
        _unseen_bytes += newest.stat().st_size
    if _unseen_bytes > _LOOK_SHARE * limit:
        _unseen_bytes = 0.0
        _evict(newest, limit)


def _evict(newest: Path, limit: float) -> None:
    """Remove what was not read for longest until the cache is within its limit; ``newest`` stays, and all indices."""
    files = []
    for file in newest.parent.glob("*-*"):
        with suppress(FileNotFoundError):  # another process has just removed it
            status = file.stat()
            is_written = file.name.startswith(".") and time.time() - status.st_mtime < _ABANDONED
            if not (is_written or file.name.endswith((INDEX_SUFFIX, STATE_SUFFIX, ".lock"))):
                files.append((status.st_mtime, status.st_size, file))
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total > limit and file != newest:
            file.unlink(missing_ok=True)  # who reads it just now keeps it
            total -= size
