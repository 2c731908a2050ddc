"""Reach files by URL (s3://, gs://, http://, and what else fsspec knows): ask for them, list, download and upload them.

S3 and Google's storage are read by Arrow, which is installed anyway; everything else by fsspec, which torch needs.

A connection that breaks is tried again, later each time, and that is logged. Credentials are those that the tools of
each storage find themselves; they belong into no URL, as that is kept and logged.
"""

import logging
import os
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from graftline.data.references import find_url
from graftline.errors import UnreachableError, UserError, first_line, no_room
from graftline.files import atomic_file, digest

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

SECONDS_FOR_METADATA = 1.0  # as Amazon's own tools wait
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
_SECRET = re.compile(r"://[^/]*@|[?&][^=]*(sig|token|key|secret|credential|password)[^=]*=", re.IGNORECASE)
_NO_ACCESS = re.compile(  # in Arrow's words; it has codes of S3 and of Google's storage
    r"ACCESS_DENIED|INVALID_(ACCESS_KEY_ID|CLIENT_TOKEN_ID|SIGNATURE)|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|"
    r"MISSING_AUTHENTICATION_TOKEN|HTTP status 40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED|credentials",
    re.IGNORECASE,
)
_OTHER_REGION = re.compile(r"HTTP status 301\b|region '.*' is wrong", re.IGNORECASE)  # in Arrow's words, and S3's
_QUOTED = re.compile("'[^']*'")  # names of files, in Arrow's words
_PIECE = 8 * 2**20  # bytes read at once
_BY_ARROW = ("s3", "gs")
_METADATA_DISABLED = "AWS_EC2_METADATA_DISABLED"  # environment variable, which Arrow's S3 reads, too
_WAYS_IN = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile in ~/.aws",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
}


class RemoteStatus(NamedTuple):
    """What changes when a file at a URL does."""

    size: int  # bytes
    stamp: int  # of time and tag, whatever the storage gives


statuses: dict[str, RemoteStatus] = {}
"""What this process knows of files, by URL."""

_answered: dict[str, str] = {}  # the URL that was asked for last with success, by server or bucket


def require_no_secret(url: str, argument: str) -> None:
    """Raise a UserError, which does not repeat it, if a URL holds a password or a key."""
    if find_url(url) is not None and _SECRET.search(url):
        raise UserError(
            f"{argument} is a URL with a password or key in it, which would be kept and logged: leave it out, and give "
            "it as the storage's own tools take it, such as by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )


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
    if _METADATA_DISABLED not in os.environ and "AWS_ACCESS_KEY_ID" not in os.environ and not _has_metadata():
        logger.info(
            f"No metadata service of Amazon's answers here: {_METADATA_DISABLED}=true, so that nobody waits for it."
        )
        os.environ[_METADATA_DISABLED] = "true"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return ArrowFSWrapper(fs.S3FileSystem(endpoint_override=endpoint))


def _has_metadata() -> bool:
    """Tell whether this is a machine of Amazon's, whose metadata service gives credentials.

    Elsewhere Arrow, where it finds no credentials, would wait for 15 s for that service, and for 2 s more at each file.
    """
    url = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    try:
        build_opener(ProxyHandler({})).open(f"{url}/latest/meta-data/", timeout=SECONDS_FOR_METADATA).close()
    except HTTPError:  # it wants a token first
        return True
    except (OSError, ValueError):
        return False
    return True
