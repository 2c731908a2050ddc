"""Read the bytes of an image by its reference: a file's path, or a place in a shard.

A shard is a plain tar of many images. The reference of one of them names the shard, where its bytes lie, how many they
are, how their SHA-256 starts, and its name in the tar:

    /data/pets/pets-000003.tar/00000001536+20480+1f2e3d4c/cats/0001.jpg

So whoever has the reference reads the image with one seek, without an index, and knows whether it is the right one.
Needs nothing but Python, as the predictor imports it in a small container.
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


def open_image(reference: str | os.PathLike[str]) -> io.BytesIO | io.BufferedReader:
    """Open an image.

    Raises:
        OSError: it cannot be read.
        DecodeError: it is no file, or its shard has other bytes at this place.
    """
    place = find_place(reference)
    if place is not None:
        return io.BytesIO(_read(place))
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
    found = os.stat(to_path(reference) if place is None else place.shard)  # noqa: PTH116 (as below)
    return FileStatus(found.st_size if place is None else place.size, found.st_mtime_ns, found.st_ctime_ns)


def is_there(reference: str) -> bool:
    """Tell whether an image's file, or its shard, is there."""
    try:
        read_status(reference)
    except OSError:
        return False
    return True


def file_of(reference: str) -> Path:
    """Return the file that an image lies in: its own, or its shard."""
    place = find_place(reference)
    return Path(to_path(reference) if place is None else place.shard)


def _read(place: Place) -> bytes:
    with open(place.shard, "rb") as file:  # noqa: PTH123 (100,000 Path objects cost as much as the call)
        file.seek(place.offset)
        content = file.read(place.size)
    if hashlib.sha256(content).hexdigest()[:DIGITS] != place.digest:
        raise DecodeError("broken", f"{Path(place.shard).name} has changed since it was indexed")
    return content
