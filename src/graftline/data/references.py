"""Read the bytes of an image by its reference: a file's path, a URL, or a place in a shard at either.

A shard is a plain tar of many images. The reference of one of them names the shard, where its bytes lie, how many they
are, how their SHA-256 starts, and its name in the tar:

    /data/pets/pets-000003.tar/00000001536+20480+1f2e3d4c/cats/0001.jpg

So whoever has the reference reads the image with one seek, without an index, and knows whether it is the right one.
Needs nothing but Python, but for URLs, as the predictor imports it in a small container.
"""

import hashlib
import io
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from graftline.data.decoding import DecodeError
from graftline.data.file_names import to_path

OFFSET_DIGITS = 11  # with leading zeros: references in order are read from front to back
DIGITS = 8  # of the SHA-256: 1 in 4 billion other contents would pass
_URL = re.compile(r"(?!file:)([a-z][a-z0-9+]+):/{1,2}(?=[^/])(.+)", re.DOTALL)  # a `Path` keeps one of the slashes
_PLACE = re.compile(r"(.+\.tar)/(\d+)\+(\d+)\+([0-9a-f]{8})/(.+)", re.DOTALL)


class Place(NamedTuple):
    """Where an image lies in a shard."""

    shard: str  # path of the tar
    offset: int  # of the first byte of the content
    size: int  # bytes
    digest: str  # the first `DIGITS` of the content's SHA-256, in hex
    name: str  # in the tar

    @property
    def reference(self) -> str:
        """Return the text that stands for it.

        >>> find_place(Place("/data/a.tar", 512, 3, "1f2e3d4c", "cats/1.jpg").reference).name
        'cats/1.jpg'
        """
        return f"{self.shard}/{self.offset:0{OFFSET_DIGITS}}+{self.size}+{self.digest}/{self.name}"


class FileStatus(NamedTuple):
    """What changes when a file does."""

    size: int  # bytes
    modified: int  # ns
    changed: int  # ns


def find_place(reference: str | os.PathLike[str]) -> Place | None:
    """Return the place in a shard that a reference stands for; None for that of a file.

    >>> find_place("cats/1.jpg") is None
    True
    """
    match = _PLACE.fullmatch(os.fspath(reference))
    return None if match is None else Place(match[1], int(match[2]), int(match[3]), match[4], match[5])


def find_url(path: str | os.PathLike[str]) -> str | None:
    """Return a URL as it was typed, also where it was made into a `Path`; None for a path of this machine.

    >>> find_url(Path("s3://pets/cats")), find_url("cats/1.jpg")
    ('s3://pets/cats', None)
    """
    match = _URL.fullmatch(os.fspath(path))
    return None if match is None else f"{match[1]}://{match[2]}"


def shard_url(reference: str | os.PathLike[str]) -> str | None:
    """Return the URL of the shard that an image lies in; None for any other image.

    >>> shard_url("s3://pets/a.tar/00000000512+3+1f2e3d4c/cats/1.jpg"), shard_url("cats/1.jpg")
    ('s3://pets/a.tar', None)
    """
    place = find_place(reference)
    return None if place is None else find_url(place.shard)


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
        from graftline.data.remote import open_url

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


def file_of(reference: str) -> Path | None:
    """Return the file that an image lies in: its own, or its shard; None for one at a URL."""
    place = find_place(reference)
    file = to_path(reference) if place is None else place.shard
    return None if find_url(file) else Path(file)


def _read(place: Place) -> bytes:
    with open_image(place.shard) as file:
        file.seek(place.offset)
        content = file.read(place.size)
    if hashlib.sha256(content).hexdigest()[:DIGITS] != place.digest:
        raise DecodeError("broken", f"{Path(place.shard).name} has changed since it was indexed")
    return content
