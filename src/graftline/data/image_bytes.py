"""Read the bytes of an image by its reference, and tell whether they have changed.

Needs nothing but Python, but for URLs, as the predictor imports it in a small container.
"""

import hashlib
import io
import os
import stat
from pathlib import Path
from typing import NamedTuple

from graftline.data.decoding import DecodeError
from graftline.data.file_names import to_path
from graftline.data.references import DIGITS, Place, find_place, find_url


class FileStatus(NamedTuple):
    """What changes when a file does."""

    size: int  # bytes
    modified: int  # ns
    changed: int  # ns


def open_image(reference: str | os.PathLike[str]) -> io.BytesIO | io.BufferedReader:
    """Open an image.

    Raises:
        OSError: it cannot be read.
        DecodeError: it is no file, or its shard has other bytes at this place.
    """
    place = find_place(reference)
    if place is not None:
        return io.BytesIO(_read(place))
    if (url := find_url(reference)) is not None:
        from graftline.data.remote_cache import open_url

        return open_url(url)
    path = Path(to_path(reference))
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device might never end
        raise DecodeError("unreadable", "this is no file")
    return path.open("rb")


def read_status(reference: str) -> FileStatus:
    """Return what tells whether an image has changed: of its file, or of its shard with its own size.

    Raises:
        OSError: there is no such file, or it cannot be looked at.
    """
    place = find_place(reference)
    file = reference if place is None else place.shard
    if (url := find_url(file)) is not None:
        from graftline.data.remote import remote_status

        status = remote_status(url)
        return FileStatus(status.size if place is None else place.size, status.stamp, 0)
    found = os.stat(to_path(file))  # noqa: PTH116 (as below)
    return FileStatus(found.st_size if place is None else place.size, found.st_mtime_ns, found.st_ctime_ns)


def is_there(reference: str) -> bool:
    """Tell whether an image's file, or its shard, is there."""
    try:
        read_status(reference)
    except OSError:
        return False
    return True


def _read(place: Place) -> bytes:
    with open_image(place.shard) as file:
        file.seek(place.offset)
        content = file.read(place.size)
    if hashlib.sha256(content).hexdigest()[:DIGITS] != place.digest:
        raise DecodeError("broken", f"{Path(place.shard).name} has changed since it was indexed")
    return content
