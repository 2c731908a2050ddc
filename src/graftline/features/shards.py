"""One entry of the activation cache: a matrix on disk, filled shard by shard.

An entry is a folder of

    entry.json        what it is: its key in full, shape, type, times
    activations.bin   (N, F) row by row, memory-mapped by those that read it
    shards/00000      the checksum of the first rows; a shard without a file here was not written, or not to its end
    used              locked, shared, by those that read the entry
    writing           locked by the one that fills it

Letters: N images, F numbers per image.
"""

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from graftline.files import atomic_file, write_json
from graftline.locks import Lock

MAX_SHARD_IMAGES = 512  # some seconds of work, which is what a killed pass may lose
MAX_SHARD_BYTES = 64 * 2**20  # in float32, which it is before it is written


@dataclass(frozen=True)
class Description:
    """What ``entry.json`` says.

    Attributes:
        key: all that the activations depend on.
        images: N.
        width: F.
        dtype: ``float16`` or ``float32``.
        created: seconds since 1970.
        used: when it was last opened, seconds since 1970.
    """

    key: dict[str, Any]
    images: int
    width: int
    dtype: str
    created: float
    used: float

    @property
    def row_bytes(self) -> int:
        """Bytes per image."""
        return self.width * np.dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        """Bytes of all activations."""
        return self.images * self.row_bytes

    @property
    def shard_images(self) -> int:
        """Images per shard."""
        return max(1, min(MAX_SHARD_IMAGES, MAX_SHARD_BYTES // (4 * self.width)))

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.images // self.shard_images)

    def rows(self, shard: int) -> range:
        """Return which images a shard holds."""
        return range(self.images)[shard * self.shard_images : (shard + 1) * self.shard_images]


class HalfPrecisionError(Exception):
    """A number is too large for float16."""


class ActivationEntry:
    """An entry of the cache, maybe one that is still to be written.

    Args:
        directory: its folder, named by the digest of its key.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._data = directory / "activations.bin"

    def lock_for_use(self) -> Lock:
        """Keep others from removing the entry."""
        return Lock(self.directory / "used", shared=True, on_wait=lambda: None)

    def lock_for_writing(self, on_wait: Callable[[], None]) -> Lock:
        """Keep others from writing it."""
        return Lock(self.directory / "writing", shared=False, on_wait=on_wait)

    @property
    def description(self) -> Description | None:
        """What the entry is; None where nothing was written that could be used."""
        try:
            content = json.loads((self.directory / "entry.json").read_text(encoding="utf-8"))
            described = Description(**content)
            complete = self._data.stat().st_size == described.bytes
        except (OSError, ValueError, TypeError):
            return None
        return described if complete else None

    def create(self, description: Description) -> None:
        """Reserve the space for all shards.

        Raises:
            OSError: there is not enough of it; then nothing is left of the entry.
        """
        self.discard()
        try:
            with self._data.open("wb") as file:
                file.truncate(description.bytes)
                if hasattr(os, "posix_fallocate"):  # macOS has none: there a full disk shows while we write
                    os.posix_fallocate(file.fileno(), 0, description.bytes)
            (self.directory / "shards").mkdir()
            write_json(self.directory / "entry.json", asdict(description))
        except OSError:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was written, but for the locks."""
        (self.directory / "entry.json").unlink(missing_ok=True)
        self._data.unlink(missing_ok=True)
        shutil.rmtree(self.directory / "shards", ignore_errors=True)

    def touch(self) -> None:
        """Note that the entry is used now."""
        if described := self.description:
            write_json(self.directory / "entry.json", asdict(replace(described, used=time.time())))

    def write(self, description: Description, shard: int, activations: np.ndarray) -> None:
        """Write a shard, (n, F) float32, and then its checksum, without which it does not count.

        Raises:
            HalfPrecisionError: a number becomes infinite in float16.
        """
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(activations, dtype=description.dtype)
        if np.isfinite(activations).all() and not np.isfinite(rows).all():
            raise HalfPrecisionError
        with self._data.open("r+b") as file:
            file.seek(shard * description.shard_images * description.row_bytes)
            file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
        with atomic_file(self._mark(shard)) as temporary:
            temporary.write_text(_checksum(rows), encoding="ascii")

    def written(self, description: Description) -> tuple[list[int], list[int]]:
        """Return which shards are missing and which are damaged."""
        array = self.array(description)

        def state(shard: int) -> str:
            rows = description.rows(shard)
            try:
                expected = self._mark(shard).read_text(encoding="ascii")
            except (OSError, ValueError):
                return "missing"
            return "whole" if _checksum(array[rows.start : rows.stop]) == expected else "damaged"

        with ThreadPoolExecutor() as pool:  # zlib lets other threads run
            states = list(pool.map(state, range(description.num_shards)))
        missing, damaged = ([n for n, s in enumerate(states) if s == kind] for kind in ("missing", "damaged"))
        return missing, damaged

    def is_complete(self) -> bool:
        """Tell whether all shards were written; their content is not looked at."""
        described = self.description
        return described is not None and all(self._mark(shard).exists() for shard in range(described.num_shards))

    def array(self, description: Description) -> np.ndarray:
        """Return the activations (N, F), memory-mapped; what is written into the array does not reach the disk."""
        return np.memmap(self._data, description.dtype, mode="c", shape=(description.images, description.width))

    def bytes(self) -> int:
        """Return what the entry takes on disk."""
        try:
            return self._data.stat().st_size
        except OSError:
            return 0

    def _mark(self, shard: int) -> Path:
        return self.directory / "shards" / f"{shard:05}"


def _checksum(rows: np.ndarray) -> str:
    """Return the CRC-32 of the rows' bytes, which any flipped byte changes; it keeps pace with the disk."""
    return f"{zlib.crc32(rows.data):08x}"
