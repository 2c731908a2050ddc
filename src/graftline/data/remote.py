"""Read files by URL (s3://, gs://, http://, and what else fsspec knows), each kept in a cache on this machine's disk.

S3 and Google's storage are read by Arrow, which is installed anyway; everything else by fsspec, which torch needs.

A file is downloaded once, as a whole. The cache may hold GRAFTLINE_REMOTE_GB (50); what was not read for longest goes,
but for the indices of shards, so that who only lists images needs no shard again.
A connection that breaks is tried again, later each time, and that is logged. Credentials are those that the tools of
each storage find themselves; they belong into no URL, as that is kept and logged.
"""

import io
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from graftline.data.references import find_place, find_url
from graftline.errors import UnreachableError, UserError, first_line, no_room
from graftline.files import atomic_file, cache_directory, digest
from graftline.locks import Lock

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
INDEX_SUFFIX = ".index.parquet"  # of what is known of a shard, some 40 bytes per image
STATE_SUFFIX = ".state"  # of the note which state of its shard an index at a URL is of
_SECRET = re.compile(r"://[^/]*@|[?&][^=]*(sig|token|key|secret|credential|password)[^=]*=", re.IGNORECASE)
_NO_ACCESS = re.compile(  # in Arrow's words; it has codes of S3 and of Google's storage
    r"ACCESS_DENIED|INVALID_(ACCESS_KEY_ID|CLIENT_TOKEN_ID|SIGNATURE)|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|"
    r"MISSING_AUTHENTICATION_TOKEN|HTTP status 40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED|credentials",
    re.IGNORECASE,
)
_OTHER_REGION = re.compile(r"HTTP status 301\b|region '.*' is wrong", re.IGNORECASE)  # in Arrow's words, and S3's
_QUOTED = re.compile("'[^']*'")  # names of files, in Arrow's words
_PIECE = 8 * 2**20  # bytes read at once
_WORTH_A_LINE = 10_000_000  # bytes
_FRESH = 60.0  # seconds in which a use is not noted again
_LONGEST_NAME = 60  # letters of a file's name in the cache, behind its digest
_LOOK_SHARE = 0.01  # of the limit of the cache that one process downloads between two looks at all of its files
_ABANDONED = 86_400.0  # seconds without a byte, after which a download is nobody's
_TRIES = 3  # to open a file that others remove in the same moment
_BY_ARROW = ("s3", "gs")
_WAYS_IN = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile in ~/.aws",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
}


class RemoteStatus(NamedTuple):
    """What changes when a file at a URL does."""

    size: int  # bytes
    stamp: int  # of time and tag, whatever the storage gives


def require_no_secret(url: str, argument: str) -> None:
    """Raise a UserError, which does not repeat it, if a URL holds a password or a key."""
    if find_url(url) is not None and _SECRET.search(url):
        raise UserError(
            f"{argument} is a URL with a password or key in it, which would be kept and logged: leave it out, and give "
            "it as the storage's own tools take it, such as by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )


_unseen_bytes = math.inf  # that this process has downloaded since it looked at all files of the cache

statuses: dict[str, RemoteStatus] = {}
"""What this process knows of files, by URL."""

_answered: dict[str, str] = {}  # the URL that was asked for last with success, by server or bucket


def remote_status(url: str) -> RemoteStatus:
    """Return what tells whether a file at a URL has changed; asked once by each process.

    Raises:
        OSError: there is no such file.
        UserError: it cannot be reached.
    """
    if url not in statuses:
        statuses[url] = _status(_try(url, lambda system, path: system.info(path)))
    return statuses[url]


def _status(found: dict[str, Any]) -> RemoteStatus:
    """Return what tells whether a file has changed, of what its storage tells of it."""
    stamp = [str(found.get(name)) for name in ("mtime", "LastModified", "created", "ETag", "etag")]
    stamp += [str(found[name]) for name in ("Last-Modified", "Content-MD5", "Digest") if name in found]  # of HTTP
    return RemoteStatus(int(found.get("size") or 0), int(digest(stamp)[:15], 16))


def list_urls(url: str, suffix: str = "") -> list[str]:
    """Return the URLs of the files with a suffix below one, in order.

    Where the list of a storage tells all of each file that the storage would tell if it was asked for it, each is not.

    Raises:
        UserError: it cannot be reached.
    """
    scheme = url.partition("://")[0]
    is_page = scheme.startswith("http")
    found = {find_url(path) or f"{scheme}://{path.lstrip('/')}": told for path, told in _try(url, _find).items()}
    if scheme in _BY_ARROW:
        statuses.update({one: _status(told) for one, told in found.items()})
    return sorted(one for one in found if one.endswith(suffix) and not (is_page and "?" in one))  # it sorts the page


def _find(system: Any, path: str) -> dict[str, dict[str, Any]]:
    """Return what a storage tells of each file below a path, by its path there; nothing where the path is not.

    fsspec's own ``find`` passes over each folder that it cannot list, and be it for want of a connection.
    """
    files, folders = dict[str, dict[str, Any]](), [path]
    while folders:
        folder = folders.pop()
        try:
            entries = system.ls(folder, detail=True)
        except FileNotFoundError as error:
            if not _is_missing(error):
                raise
            continue
        for entry in entries:
            name = entry["name"]
            if entry["type"] != "directory":
                files[name] = entry
            elif len(name.rstrip("/")) > len(folder.rstrip("/")):  # a page may list the one above
                folders.append(name)
    return files


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


def download(url: str, file: Path) -> None:
    """Write what a URL holds into a file.

    Raises:
        OSError: there is no such file, or no room for it.
        UserError: it cannot be reached.
    """
    size = remote_status(url).size
    with atomic_file(file) as temporary:

        def copy(system: Any, path: str) -> None:
            """Go on where an earlier try ended, where the storage can."""
            with temporary.open("ab") as output, system.open(path, "rb") as remote:
                try:
                    remote.seek(output.tell())
                except ValueError:  # a server that sends files from their start only
                    output.truncate(0)
                while piece := remote.read(_PIECE):
                    output.write(piece)
            if size and temporary.stat().st_size != size:
                raise ConnectionError(f"{temporary.stat().st_size:,} of {size:,} bytes came")

        _try(url, copy)


def upload(file: Path, url: str) -> None:
    """Write a file to a URL.

    Raises:
        UserError: the storage cannot be reached, or not be written to.
    """

    def put(system: Any, path: str) -> None:
        if url.partition("://")[0] not in _BY_ARROW:  # which have no folders
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.put_file(str(file), path)

    _try(url, put)
    statuses.pop(url, None)


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


def _try(url: str, work: Callable[[Any, str], Answer]) -> Answer:
    """Return what work on a file system and a path in it gives, tried again where the connection breaks."""
    for wait in (*WAITS, None):
        try:
            system, path = _open(url)
            answer = work(system, path)
        except Exception as error:  # each storage has errors of its own
            if _is_missing(error) or no_room(error) is not None:  # the latter of our own disk
                raise
            cause = error.__cause__ or error
            reason = first_line(cause)
            scheme = url.partition("://")[0]
            if _is_forbidden(cause):
                ways = _WAYS_IN.get(scheme, "what its server asks for")
                kind = UnreachableError if _is_closed(_server(url)) else UserError
                raise kind(f"There is no access to {url}: check the credentials ({ways}).") from error
            if _OTHER_REGION.search(reason):
                raise UnreachableError(
                    f"{url} lies in another region than the one that was asked: set AWS_REGION to that of the bucket."
                ) from error
            if isinstance(error, ImportError | ValueError):
                raise UnreachableError(f"{url} cannot be read ({reason}): install what reads {scheme}://.") from error
            if wait is None:
                raise UnreachableError(
                    f"{url} cannot be reached ({reason}), after {len(WAITS) + 1} tries: check the address and the "
                    "network, then run the same command again."
                ) from error
            logger.warning(f"The connection to {url} broke ({reason}): trying again in {wait:g} s.")
            time.sleep(wait)
        else:
            _answered[_server(url)] = url
            return answer
    raise AssertionError


def _is_missing(error: Exception) -> bool:
    """Tell whether there is no such file, which fsspec says of whatever goes wrong when it asks a server."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or isinstance(cause, TimeoutError):
        return False
    return getattr(cause, "status", None) == 404 or not type(cause).__module__.startswith("aiohttp")


def _is_forbidden(cause: BaseException) -> bool:
    """Tell by its status or code whether a storage has refused to let us in: a name or a size may hold any number."""
    if isinstance(cause, PermissionError) or getattr(cause, "status", None) in (401, 403):  # the latter of aiohttp
        return True
    return _NO_ACCESS.search(_QUOTED.sub("", first_line(cause))) is not None


def _server(url: str) -> str:
    """Return the part of a URL that names a server or a bucket."""
    return "/".join(url.split("/")[:3])


def _is_closed(server: str) -> bool:
    """Tell whether a server or bucket refuses what it gave before, too: then a refusal is no matter of one file."""
    if (url := _answered.get(server)) is None:
        return False
    try:
        system, path = _open(url)
        system.info(path)
    except Exception as error:  # each storage has errors of its own
        return not _is_missing(error)
    return False


def _open(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    import fsspec  # not at the top, as the predictor's container may lack it

    scheme, _, path = url.partition("://")
    if scheme in _BY_ARROW:
        return _arrow(scheme), path
    system, path = fsspec.core.url_to_fs(url)
    return system, path


@lru_cache
def _arrow(scheme: str) -> Any:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow import fs

    if scheme == "gs":
        return ArrowFSWrapper(fs.GcsFileSystem())
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return ArrowFSWrapper(fs.S3FileSystem(endpoint_override=endpoint))
