"""All of the activation cache on disk: tables of segments, what they take, and which of them make room for others.

<directory>/lock                          held while segments are looked for, made or removed
<directory>/<digest of a key>/<number>/   a segment of the table of that key
<directory>/trunks/<digest>.onnx          an exported trunk
<directory>/<digest>/entry.json           an entry of format 1, which is counted and removed, but not read
"""

import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from graftline.features.activation_table import ActivationTable, GatheredRows
from graftline.features.digests import NOWHERE, Digests, distinct
from graftline.features.segment import UNWRITTEN, Segment, SegmentHeader, is_written
from graftline.files import digest
from graftline.locks import Lock

GIGABYTE = 1e9
SECONDS_PER_DAY = 86_400.0
MAX_SEGMENTS = 32  # of a table, before small ones are merged: each one in use takes two open files


class CacheFullError(Exception):
    """The activations are not to be kept; the message says why, as a part of a sentence."""


@dataclass(frozen=True)
class CacheEntryInfo:
    """What the cache holds for one key: the activations of a network's frozen part, and of one view.

    Attributes:
        name: the digest of the key.
        segments: what is on disk.
        headers: of those that can be read; none: an entry of an earlier format, or what a killed process has left.
        bytes: on disk.
        complete: whether all that was begun is written.
        used: when it was last opened, seconds since 1970.
    """

    name: str
    segments: Sequence[Segment]
    headers: Sequence[SegmentHeader]
    bytes: int
    complete: bool
    used: float

    @classmethod
    def of(cls, name: str, segments: Sequence[Segment]) -> "CacheEntryInfo":
        """Look at some segments."""
        readable = [segment for segment in segments if segment.header is not None]
        complete = all((segment.states() != UNWRITTEN).all() for segment in readable)
        headers = [segment.header for segment in readable if segment.header is not None]
        size = sum(segment.bytes() for segment in segments)
        return cls(name, segments, headers, size, complete, max(segment.used() for segment in segments))

    @property
    def is_readable(self) -> bool:
        """Whether there is something that can be read."""
        return len(self.headers) > 0


@dataclass(frozen=True)
class ActivationStore:
    """A folder of tables and exported trunks.

    Attributes:
        directory: the folder.
        max_bytes: what all tables and exported trunks together may take.
    """

    directory: Path
    max_bytes: float

    def lock(self) -> Lock:
        """Keep others from making or removing segments; they wait, so do nothing slow meanwhile."""
        return Lock(self.directory / "lock", shared=False, on_wait=lambda: None)

    def table(self, key: dict[str, Any]) -> ActivationTable:
        """Return the table of a key, whether there is something in it or not."""
        return ActivationTable(self.directory / digest(key), key)

    def trunk_file(self, key: dict[str, Any]) -> Path:
        """Return where the exported trunk that ``key`` describes lies."""
        return self.directory / "trunks" / f"{digest(key)}.onnx"

    def entries(self) -> list[CacheEntryInfo]:
        """Return what there is, the one that was used last first, and what cannot be read in the end."""
        if not self.directory.exists():
            return []
        with self.lock():
            by_name = groupby(self._segments(), key=lambda s: s.directory.relative_to(self.directory).parts[0])
            found = [CacheEntryInfo.of(name, list(segments)) for name, segments in by_name]
        return sorted(found, key=lambda entry: (not entry.is_readable, -entry.used))

    def trunk_bytes(self) -> int:
        """Return what the exported trunks take."""
        return sum(path.stat().st_size for path in self.directory.glob("trunks/*"))

    def reserve(self, table: ActivationTable, digests: Digests, width: int, dtype: str) -> tuple[Segment, Lock] | None:
        """Make a segment for those images that have no place in a table yet; None if all have.

        Segments of any table that were not used for longest are removed where there is too little space.

        Returns:
            The segment and a lock that keeps it.

        Raises:
            CacheFullError: what is allowed does not suffice, though nothing that is not in use was left.
            OSError: the disk has no room.
        """
        with self.lock():
            new = np.flatnonzero(table.locate(digests).part == NOWHERE)
            if len(new) == 0:
                return None
            values = np.ascontiguousarray(digests.values[:, new])
            return self._create(table, Digests(values, np.argsort(values[0])), width, dtype)

    def merge(self, table: ActivationTable) -> None:
        """Where a table has many segments, copy the smaller half of them into one, but for those in use.

        So an image is copied about as often as the number of images doubles, and none is computed again.
        """
        with self.lock(), ExitStack() as locks:
            if len(segments := table.segments()) < MAX_SEGMENTS:
                return
            largest, smaller = segments[: len(segments) // 2], segments[len(segments) // 2 :]
            for segment in largest:  # they are not what makes room for a copy
                locks.enter_context(segment.lock_for_use())
            free = []
            for segment in smaller:
                with suppress(BlockingIOError):
                    locks.enter_context(segment.lock_for_removal())
                    free.append(segment)
            with suppress(CacheFullError):  # there is no room for two copies at a time
                if len(free) > 1:
                    self._copy(table, free)
                    for segment in free:
                        shutil.rmtree(segment.directory, ignore_errors=True)

    def make_room(self, needed: float) -> None:
        """Remove segments and exported trunks until ``needed`` bytes more fit; the caller has the lock.

        First what cannot be read any more, then exported trunks, then the segments that were not used for longest.

        Raises:
            CacheFullError: that cannot be; segments in use are not removed.
        """
        if needed > self.max_bytes:
            raise CacheFullError(
                f"the activations would take {format_bytes(needed)}, more than the {format_bytes(self.max_bytes)} "
                "of Features.max_gb"
            )
        sizes = {segment: segment.bytes() for segment in self._segments()}
        taken = sum(sizes.values()) + self.trunk_bytes()
        useless = [segment for segment in sizes if segment.header is None]
        oldest = sorted((segment for segment in sizes if segment.header is not None), key=Segment.used)
        for segment in [*useless, None, *oldest]:
            if taken + needed <= self.max_bytes:
                return
            if segment is None:  # they are made again in seconds
                taken -= self.trunk_bytes()
                self.remove_trunks()
            elif _remove(segment):
                taken -= sizes[segment]
        if taken + needed > self.max_bytes:
            raise CacheFullError(
                f"the activations would take {format_bytes(needed)}, and what is in use leaves "
                f"{format_bytes(max(0.0, self.max_bytes - taken))} of the {format_bytes(self.max_bytes)} of "
                "Features.max_gb"
            )

    def remove(self, segments: Iterable[Segment]) -> list[Segment]:
        """Remove segments; returns those that could be, as nobody uses them."""
        with self.lock():
            return [segment for segment in segments if _remove(segment)]

    def remove_unwritten(self, table: ActivationTable) -> None:
        """Remove the segments of which nothing was written, unless another process is about to."""
        with self.lock():
            for segment in table.segments():
                if not is_written(segment.states()).any():
                    _remove(segment)

    def remove_trunks(self) -> None:
        """Remove the exported trunks; they are made again when they are needed."""
        shutil.rmtree(self.directory / "trunks", ignore_errors=True)

    def unused(self, days: float) -> list[Segment]:
        """Return the segments that were not used for some days."""
        return [segment for segment in self._segments() if time.time() - segment.used() >= days * SECONDS_PER_DAY]

    def _segments(self) -> list[Segment]:
        """Return all segments, and what of an earlier format or of a killed process is in their place."""
        return [Segment(path.parent) for depth in ("*", "*/*") for path in sorted(self.directory.glob(f"{depth}/used"))]

    def _create(self, table: ActivationTable, digests: Digests, width: int, dtype: str) -> tuple[Segment, Lock]:
        header = SegmentHeader.describe(table.key, digests, width, dtype)
        self.make_room(header.bytes)
        segment = Segment.create(table.next_directory(), header, digests)
        return segment, segment.lock_for_use()

    def _copy(self, table: ActivationTable, segments: Sequence[Segment]) -> None:
        """Copy what is written of some segments, and not damaged, into a new one."""
        values, parts, rows = [], [], []
        for number, segment in enumerate(segments):
            assert segment.header is not None
            assert segment.digests is not None
            segment.verify(np.flatnonzero(is_written(segment.states())).tolist())
            written = is_written(segment.states())
            kept = np.flatnonzero(written[np.arange(segment.header.images) // segment.header.shard_images])
            values.append(segment.digests.values[:, kept])
            parts.append(np.full(len(kept), number))
            rows.append(kept)
        digests, first, _ = distinct(np.concatenate(values, axis=1))
        if len(digests) == 0:
            return
        source = GatheredRows(
            [segment.array() for segment in segments], np.concatenate(parts)[first], np.concatenate(rows)[first]
        )
        merged, lock = self._create(table, digests, source.shape[1], str(source.dtype))
        with lock:
            assert merged.header is not None
            for shard in range(merged.header.num_shards):
                merged.write(shard, source.take(np.array(merged.header.rows(shard))))


def _remove(segment: Segment) -> bool:
    """Remove a segment, and the folder of its table if it was the last one; returns whether nobody uses it."""
    try:
        with segment.lock_for_removal():
            shutil.rmtree(segment.directory, ignore_errors=True)
    except BlockingIOError:
        return False
    with suppress(OSError):  # there are others, or it is an entry of format 1, which has no table
        segment.directory.parent.rmdir()
    return True


def format_bytes(size: float) -> str:
    """Return a number of bytes for a person.

    >>> format_bytes(784_000), format_bytes(3.14e9)
    ('784 KB', '3.1 GB')
    """
    for unit, factor in (("GB", GIGABYTE), ("MB", 1e6), ("KB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}" if size < 100 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size:.0f} bytes"
