"""Decoded images in memory, from one epoch and one fit to the next.

Letters: ``N`` images, ``H``, ``W`` size of an image in px.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from graftline.augment.draw import PreparedTransform
from graftline.data.version import Samples

MEMORY_SHARE = 0.25  # of the memory that is free
CGROUP = Path("/sys/fs/cgroup")  # of a container, where it has a limit


class Pictures:
    """Holds the pictures of a split, each from when it is put in; for any number of threads.

    Args:
        nbytes: the most that each picture takes, N numbers.
    """

    def __init__(self, nbytes: Sequence[int]) -> None:
        self._starts = np.concatenate([[0], np.cumsum(nbytes, dtype=np.int64)])
        self._memory = np.empty(self._starts[-1], np.uint8)  # the system gives the pages when they are written to
        self._shapes: list[tuple[int, ...] | None] = [None] * len(nbytes)

    @property
    def missing(self) -> int:
        """How many pictures are not there yet."""
        return self._shapes.count(None)

    @property
    def missing_bytes(self) -> int:
        """How much memory the pictures that are not there yet will take."""
        sizes = np.diff(self._starts)
        return int(sum(size for size, shape in zip(sizes, self._shapes, strict=True) if shape is None))

    def get(self, index: int) -> np.ndarray | None:
        """Return a copy of a picture, or None if it is not there."""
        shape, start = self._shapes[index], self._starts[index]
        if shape is None:
            return None
        return self._memory[start : start + int(np.prod(shape))].reshape(shape).copy()

    def put(self, index: int, picture: np.ndarray) -> None:
        """Keep a picture; one that is larger than was said is left out."""
        start, end = self._starts[index : index + 2]
        if picture.size <= end - start:
            self._memory[start : start + picture.size] = picture.reshape(-1)
            self._shapes[index] = picture.shape


class ImageMemory:
    """Keeps what transforms have prepared of images, where it fits into a share of the free memory.

    Args:
        share: of the memory that is free, 0 to 1; 0: nothing is kept.
    """

    def __init__(self, share: float = MEMORY_SHARE) -> None:
        self._share = share
        self._kept: dict[str, Pictures] = {}

    def open(self, samples: Samples, transform: PreparedTransform, *, processes: int = 1) -> Pictures | None:
        """Return the pictures of a split, empty or as an earlier call left them; None if they would not fit.

        Those of other splits and transforms go where room is needed.

        Args:
            samples: the split, N images.
            transform: prepares them.
            processes: that keep as much as this one.
        """
        sizes = samples.sizes
        if sizes is None:
            return None
        shapes = [transform.prepared_size((height, width)) for height, width in sizes.tolist()]
        key = _key(samples, transform)
        if key in self._kept:
            return self._kept[key]
        nbytes = [height * width * channels for height, width, channels in shapes]
        if not self._fits(sum(nbytes), processes):
            self._kept.clear()
            if not self._fits(sum(nbytes), processes):
                return None
        self._kept[key] = Pictures(nbytes)
        return self._kept[key]

    def _fits(self, nbytes: int, processes: int) -> bool:
        free = free_memory() - processes * sum(pictures.missing_bytes for pictures in self._kept.values())
        return nbytes <= self._share * free / processes


def free_memory() -> int:
    """Return how many bytes of memory are free, for this machine or for the container that this process is in."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        fields = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no cgroup of version 2, or no limit
        return free
    return min(free, limit - used + int(fields["inactive_file"]))  # of files that can be read again


def _key(samples: Samples, transform: PreparedTransform) -> str:
    """Return what the pictures depend on: the files, how they are decoded, and how they are prepared."""
    parts = (samples.sha256, samples.decoding, transform.preparation)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
