"""A table of the activation cache: all segments of one key, and where in them the activations of some images lie.

Letters: B batch, N images, U distinct ones, F numbers per image.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftline.features.digests import NOWHERE, Digests
from graftline.features.segment import TOO_LARGE, UNWRITTEN, Segment, is_written
from graftline.locks import Lock


class GatheredRows:
    """Rows of several matrices on disk, read as one matrix (N, F).

    Args:
        parts: the matrices, memory-mapped.
        part: (N,) which of them each row is from.
        row: (N,) which of its rows that is.
    """

    def __init__(self, parts: Sequence[np.ndarray], part: np.ndarray, row: np.ndarray) -> None:
        self._parts, self._part, self._row = parts, part, row
        self.dtype = np.result_type(*parts)
        self.shape = (len(row), parts[0].shape[1])
        self.nbytes = self.dtype.itemsize * self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Return all rows in memory."""
        assert copy is not False
        return self.take(np.arange(len(self))).astype(dtype or self.dtype, copy=False)

    def take(self, indices: np.ndarray, axis: int = 0) -> np.ndarray:
        """Return some rows, (B, F)."""
        assert axis == 0
        rows = np.empty((len(indices), self.shape[1]), self.dtype)
        part, row = self._part[indices], self._row[indices]
        for number, matrix in enumerate(self._parts):
            here = np.flatnonzero(part == number)
            here = here[np.argsort(row[here])]  # the disk is read forwards
            rows[here] = matrix[row[here]]
        return rows


Matrix = np.ndarray | GatheredRows  # (N, F) float16 or float32, on disk or in memory


@dataclass(frozen=True)
class Placement:
    """Where the activations of U distinct images lie, or will lie.

    Attributes:
        segments: those that hold some of them.
        part: (U,) which of the segments; ``NOWHERE``: there is no place for this image yet.
        row: (U,) which row of it.
        written: (U,) whether that row is written.
    """

    segments: Sequence[Segment]
    part: np.ndarray
    row: np.ndarray
    written: np.ndarray

    def shards(self, *, written: bool) -> list[tuple[Segment, list[int]]]:
        """Return the shards in which the images lie that are written, or those that are not."""
        found = []
        for number, segment in enumerate(self.segments):
            assert segment.header is not None
            rows = self.row[(self.part == number) & (self.written == written)]
            found.append((segment, np.unique(rows // segment.header.shard_images).tolist()))
        return found

    def matrix(self, which: np.ndarray) -> Matrix:
        """Return the activations (N, F) of images, each given by its number among the U distinct ones.

        That is the memory-mapped file itself where they lie there one behind the other.
        """
        part, row = self.part[which], self.row[which]
        arrays = [segment.array() for segment in self.segments]
        if len(arrays) == 1 and np.array_equal(row, np.arange(row[0], row[0] + len(row))):
            return arrays[0][row[0] : row[0] + len(row)]
        return GatheredRows(arrays, part, row)


class ActivationTable:
    """All segments of one key, maybe none yet.

    Args:
        directory: the folder of the segments, named by the digest of the key.
        key: all that the activations depend on, beside the image.
    """

    def __init__(self, directory: Path, key: dict[str, Any]) -> None:
        self.directory = directory
        self.key = key

    def segments(self) -> list[Segment]:
        """Return the segments that can be read, the largest first."""
        folders = sorted(path.parent for path in self.directory.glob("*/used"))
        usable = [s for s in map(Segment, folders) if s.header is not None and s.digests is not None]
        return sorted(usable, key=lambda segment: -segment.header.images)  # type: ignore[union-attr]  # looked at above

    def next_directory(self) -> Path:
        """Return where the next segment goes."""
        numbers = [int(path.name) for path in self.directory.glob("*") if path.name.isdigit()]
        return self.directory / f"{max(numbers, default=-1) + 1:05}"

    def dtype(self) -> str | None:
        """Return the type that was decided on for the table: float32 once float16 did not do. None: nothing yet."""
        segments = self.segments()
        wide = any(s.header.dtype == "float32" or (s.states() == TOO_LARGE).any() for s in segments if s.header)
        return "float32" if wide else "float16" if segments else None

    @contextmanager
    def deciding(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Keep others from deciding on the type meanwhile; ``on_wait`` is called before we wait for another."""
        file = self.directory / "deciding"
        with Lock(file, shared=False, on_wait=on_wait):
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
                with suppress(OSError):  # unless there is a segment
                    self.directory.rmdir()

    def locate(self, digests: Digests) -> Placement:
        """Return where the activations of some images lie.

        A shard that is not written is a place only for one who has all of its images, and can thus compute it.
        """
        part = np.full(len(digests), NOWHERE, np.int16)
        row = np.zeros(len(digests), np.int64)
        written = np.zeros(len(digests), bool)
        used: list[Segment] = []

        def place(segment: Segment, images: np.ndarray, rows: np.ndarray, *, are_written: bool) -> None:
            if len(images) > 0:
                part[images], row[images], written[images] = len(used), rows, are_written
                used.append(segment)

        segments = self.segments()
        for segment in segments:
            if len(left := np.flatnonzero(part == NOWHERE)) == 0:
                break
            images, rows, shards = _match(segment, digests, left)
            here = is_written(segment.states())[shards] & (part[images] == NOWHERE)
            place(segment, images[here], rows[here], are_written=True)
        for segment in segments:
            is_open = segment.states() == UNWRITTEN
            if not is_open.any() or not (part == NOWHERE).any():
                continue
            images, rows, shards = _match(segment, digests, np.arange(len(digests)))
            assert segment.header is not None
            is_open &= np.bincount(shards, minlength=len(is_open)) == segment.header.shard_sizes()
            here = is_open[shards] & (part[images] == NOWHERE)
            place(segment, images[here], rows[here], are_written=False)
        return Placement(used, part, row, written)


def _match(segment: Segment, digests: Digests, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which images a segment has, their rows and their shards; beside those ``wanted`` there may be others.

    The fewer are looked for among the more.
    """
    assert segment.header is not None
    assert segment.digests is not None
    if len(segment.digests) < len(wanted):
        images = digests.find(segment.digests.values)
        rows = np.flatnonzero(images != NOWHERE)
        images = images[rows]
    else:
        rows = segment.digests.find(digests.values[:, wanted])
        images = wanted[rows != NOWHERE]
        rows = rows[rows != NOWHERE]
    return images, rows, rows // segment.header.shard_images
