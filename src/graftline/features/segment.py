"""A segment of the activation cache: activations that were written together, on disk.

It is filled shard by shard, by several processes at once if need be, and is a folder of

    segment.json      what it is: its key in full, shape, type
    digests.npy       (2, N) uint64, which images it holds, in the order of the rows
    order.npy         (N,) uint32, the same sorted
    activations.bin   (N, F) row by row, memory-mapped by those that read it
    shards.bin        (S,) uint64, the state of each shard: what is not marked here was not written, or not to its end
    used              locked, shared, by those that read the segment; its time of change is the last use
    shard-00000       locked by the process that computes a shard, while it does

Letters: N images, F numbers per image, S shards.
"""

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from graftline.errors import writing
from graftline.features.digests import Digests
from graftline.files import write_json
from graftline.locks import Lock

FORMAT = 4  # raise it when the layout changes, or when the same image and key come to mean other activations
MAX_SHARD_IMAGES = 512  # some seconds of work, which is what a killed pass may lose
MAX_SHARD_BYTES = 64 * 2**20  # in float32, which it is before it is written
INDEX_BYTES = 16 + 4  # per image, of its digest and of its place in the order

# the state of a shard: whole, with the CRC-32 of its bytes in the lower half; or not to be kept in float16
UNWRITTEN, WRITTEN, TOO_LARGE = 0, 1 << 32, 2 << 32

# which shards this process has read and found whole, by file, inode and time of change
_verified: dict[tuple[Path, int, int], np.ndarray] = {}


@dataclass(frozen=True)
class SegmentHeader:
    """What ``segment.json`` says.

    Attributes:
        key: all that the activations depend on, beside the image.
        images: N.
        width: F.
        dtype: ``float16`` or ``float32``.
        shard_images: images per shard.
        digests_crc: CRC-32 of the digests.
        created: seconds since 1970.
        format: of the folder.
    """

    key: dict[str, Any]
    images: int
    width: int
    dtype: str
    shard_images: int
    digests_crc: int
    created: float
    format: int = FORMAT

    @classmethod
    def describe(cls, key: dict[str, Any], digests: Digests, width: int, dtype: str) -> "SegmentHeader":
        """Return the header of a segment that is to be written now."""
        shard_images = max(1, min(MAX_SHARD_IMAGES, MAX_SHARD_BYTES // (4 * width)))
        return cls(key, len(digests), width, dtype, shard_images, _checksum(digests.values), time.time())

    @property
    def row_bytes(self) -> int:
        """Bytes per image."""
        return self.width * np.dtype(self.dtype).itemsize

    @property
    def data_bytes(self) -> int:
        """Bytes of all activations."""
        return self.images * self.row_bytes

    @property
    def bytes(self) -> int:
        """Bytes of all activations and of the index of the images."""
        return self.data_bytes + INDEX_BYTES * self.images

    @property
    def num_shards(self) -> int:
        """S."""
        return -(-self.images // self.shard_images)

    def rows(self, shard: int) -> range:
        """Return which rows a shard holds."""
        return range(self.images)[shard * self.shard_images : (shard + 1) * self.shard_images]

    def shard_sizes(self) -> np.ndarray:
        """Return how many images each shard holds, (S,)."""
        return np.diff(np.append(np.arange(0, self.images, self.shard_images), self.images))


class Segment:
    """A segment of the cache, or what a killed process or an earlier format has left in its place.

    Args:
        directory: its folder.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._data = directory / "activations.bin"
        self._states = directory / "shards.bin"
        self._used = directory / "used"

    @classmethod
    def create(cls, directory: Path, header: SegmentHeader, digests: Digests) -> "Segment":
        """Reserve the space for a segment.

        Raises:
            OSError: there is not enough of it; then nothing is left of the segment.
        """
        segment = cls(directory)
        directory.mkdir(parents=True)
        try:
            segment._used.touch()  # by which an unfinished one is found
            np.save(directory / "digests.npy", digests.values, allow_pickle=False)
            np.save(directory / "order.npy", digests.order.astype(np.uint32), allow_pickle=False)
            segment._states.write_bytes(bytes(8 * header.num_shards))
            with writing(segment._data), segment._data.open("wb") as file:
                file.truncate(header.data_bytes)
                if hasattr(os, "posix_fallocate"):  # macOS has none: there a full disk shows while we write
                    os.posix_fallocate(file.fileno(), 0, header.data_bytes)
            write_json(directory / "segment.json", asdict(header))
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return segment

    @cached_property
    def header(self) -> SegmentHeader | None:
        """What the segment is; None where there is nothing that could be used."""
        try:
            header = SegmentHeader(**json.loads((self.directory / "segment.json").read_text(encoding="utf-8")))
            complete = (self._data.stat().st_size, self._states.stat().st_size) == (
                header.data_bytes,
                8 * header.num_shards,
            )
        except (OSError, ValueError, TypeError):
            return None
        return header if complete and header.format == FORMAT else None

    @cached_property
    def digests(self) -> Digests | None:
        """Which images it holds, memory-mapped; None where that is damaged."""
        try:
            digests = Digests(
                *(
                    np.load(self.directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                    for name in ("digests", "order")
                )
            )
            whole = self.header is not None and _checksum(digests.values) == self.header.digests_crc
        except (OSError, ValueError):
            return None
        return digests if whole else None

    def lock_for_use(self) -> Lock:
        """Keep others from removing the segment, and note that it is used now."""
        lock = Lock(self._used, shared=True, on_wait=lambda: None)
        os.utime(self._used)
        return lock

    def lock_for_removal(self) -> Lock:
        """Keep others from using it.

        Raises:
            BlockingIOError: it is in use.
        """
        return Lock(self._used, shared=False)

    def claim(self, shard: int, on_wait: Callable[[], None] | None = None) -> Lock:
        """Keep others from computing a shard; `release` ends that, or the end of this process.

        Raises:
            BlockingIOError: another process has it, and ``on_wait`` is None.
        """
        return Lock(self._claim(shard), shared=False, on_wait=on_wait)

    def release(self, shard: int, claim: Lock) -> None:
        """Let others have a shard."""
        self._claim(shard).unlink(missing_ok=True)
        claim.close()

    def states(self) -> np.ndarray:
        """Return the state of each shard, (S,) uint64: ``UNWRITTEN``, ``TOO_LARGE``, or ``WRITTEN`` and a checksum."""
        return np.fromfile(self._states, np.uint64)

    def is_open(self, shard: int) -> bool:
        """Tell whether a shard is still to be written."""
        with self._states.open("rb") as file:
            file.seek(8 * shard)
            return file.read(8) == bytes(8)

    def write(self, shard: int, activations: np.ndarray) -> bool:
        """Write a shard, (n, F) float32, and then its state, without which it does not count.

        Returns:
            False if a number is too large for float16; the state says so then.
        """
        header = self.header
        assert header is not None
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(activations, dtype=header.dtype)
        if np.isfinite(activations).all() and not np.isfinite(rows).all():
            self._set_state(shard, TOO_LARGE)
            return False
        with writing(self._data), self._data.open("r+b") as file:
            file.seek(shard * header.shard_images * header.row_bytes)
            file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
        self._set_state(shard, WRITTEN | _checksum(rows))
        return True

    def verify(self, shards: Sequence[int]) -> int:
        """Compare shards with their checksums, once per process; those that are damaged count as not written after it.

        Returns:
            How many are damaged.
        """
        header, states, array = self.header, self.states(), self.array()
        assert header is not None
        status = self._data.stat()
        known = _verified.setdefault((self._data, status.st_ino, status.st_mtime_ns), np.zeros(len(states), bool))

        def is_damaged(shard: int) -> bool:
            rows = header.rows(shard)
            return WRITTEN | _checksum(array[rows.start : rows.stop]) != int(states[shard])

        unknown = [shard for shard in shards if not known[shard]]
        with ThreadPoolExecutor() as pool:  # zlib lets other threads run
            damaged = [shard for shard, bad in zip(unknown, pool.map(is_damaged, unknown), strict=True) if bad]
        known[unknown] = True
        for shard in damaged:
            known[shard] = False
            self._set_state(shard, UNWRITTEN)
        return len(damaged)

    def array(self) -> np.ndarray:
        """Return the activations (N, F), memory-mapped; what is written into the array does not reach the disk."""
        assert self.header is not None
        return np.memmap(self._data, self.header.dtype, mode="c", shape=(self.header.images, self.header.width))

    def bytes(self) -> int:
        """Return what the segment takes on disk."""
        try:
            return sum(file.stat().st_size for file in self.directory.iterdir())
        except FileNotFoundError:
            return 0

    def used(self) -> float:
        """Return when it was last opened, seconds since 1970."""
        try:
            return self._used.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _claim(self, shard: int) -> Path:
        return self.directory / f"shard-{shard:05}"

    def _set_state(self, shard: int, state: int) -> None:
        with self._states.open("r+b") as file:
            file.seek(8 * shard)
            file.write(np.uint64(state).tobytes())


def is_written(states: np.ndarray) -> np.ndarray:
    """Tell which of the shards with some states are written."""
    written: np.ndarray = (states & np.uint64(WRITTEN)) != 0
    return written


def _checksum(rows: np.ndarray) -> int:
    """Return the CRC-32 of the rows' bytes, which any flipped byte changes; it keeps pace with the disk."""
    return zlib.crc32(np.ascontiguousarray(rows).data)
