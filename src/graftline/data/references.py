"""What an image is named by, its reference: a file's path, a URL, or a place in a shard at either.

A shard is a plain tar of many images. The reference of one of them names the shard, where its bytes lie, how many they
are, how their SHA-256 starts, and its name in the tar:

    /data/pets/pets-000003.tar/00000001536+20480+1f2e3d4c/cats/0001.jpg

So whoever has the reference reads the image with one seek, without an index, and knows whether it is the right one.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

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


def file_of(reference: str) -> Path | None:
    """Return the file that an image lies in: its own, or its shard; None for one at a URL."""
    place = find_place(reference)
    file = to_path(reference) if place is None else place.shard
    return None if find_url(file) else Path(file)
