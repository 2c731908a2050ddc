"""Filling the activation cache: what is missing of it is computed, by all processes that want it together.

No process waits for another as long as there is a shard to compute that no other has claimed, and a claim ends with its
process; so processes may call this at the same time or apart, and be killed.

Letters: B batch, C channels, H height, W width, N images, F numbers per image.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, groupby
from operator import itemgetter

import numpy as np
from torch import Tensor, nn

from graftline.console import Advance, counted
from graftline.data.references import shard_url
from graftline.data.version import Samples
from graftline.errors import UserError
from graftline.features.activation_table import ActivationTable, Matrix, Placement
from graftline.features.digests import NOWHERE, Digests, distinct, read_digests
from graftline.features.engine import Engine
from graftline.features.frozen_pass import ActivationRequest, ImageBatcher, run
from graftline.features.precision import MAX_CHANGE, change_in_half
from graftline.features.segment import Segment, SegmentHeader
from graftline.features.shared_cache import SharedCache
from graftline.features.store import ActivationStore
from graftline.locks import Lock

logger = logging.getLogger(__name__)

FIRST_IMAGES = 4  # on which the engine is compared with torch
MakeEngine = Callable[[Tensor], Engine]


@dataclass(frozen=True)
class Activations:
    """Activations of the cache in use; while this object lives, nobody removes them from the disk.

    Attributes:
        array: (N, F) float16 or float32, on disk: memory-mapped, or rows to be gathered with ``take``.
        locks: on the segments that hold them.
    """

    array: Matrix
    locks: Sequence[Lock]


@dataclass(frozen=True)
class TableRequest:
    """All requests for activations of one table, image by distinct image.

    Attributes:
        table: where they lie, or are to lie.
        request: all of them as one; with the same key they have the same transform.
        digests: of the U distinct images.
        first: (U,) a row of the request for each.
        which: number of a request → (N,) which of the distinct images each of its rows is.
    """

    table: ActivationTable
    request: ActivationRequest
    digests: Digests
    first: np.ndarray
    which: Mapping[int, np.ndarray]

    @classmethod
    def of(cls, table: ActivationTable, requests: Mapping[int, ActivationRequest]) -> "TableRequest":
        """Join requests, each given with its number, and tell which images are the same."""
        parts = [request.samples for request in requests.values()]
        paths = [path for part in parts for path in part.paths]
        sha256 = [sha256 for part in parts for sha256 in part.sha256]
        samples = Samples(paths, np.concatenate([part.labels for part in parts]), None, sha256, parts[0].decoding)
        digests, first, which = distinct(read_digests(sha256))
        ends = np.cumsum([len(part.sha256) for part in parts])
        by_request = dict(zip(requests, np.split(which, ends[:-1]), strict=True))
        return cls(table, replace(next(iter(requests.values())), samples=samples), digests, first, by_request)

    @cached_property
    def batcher(self) -> ImageBatcher:
        """Decodes the images."""
        return ImageBatcher(self.request)


@dataclass(frozen=True)
class _Shard:
    """A shard of a segment all of whose images are wanted."""

    wanted: TableRequest
    segment: Segment
    number: int

    @property
    def size(self) -> int:
        """How many images it has."""
        assert self.segment.header is not None
        return len(self.segment.header.rows(self.number))

    def rows(self) -> list[int]:
        """Return the row among the request's samples of each of its images."""
        assert self.segment.header is not None
        assert self.segment.digests is not None
        rows = self.segment.header.rows(self.number)
        images = self.wanted.digests.find(self.segment.digests.values[:, rows.start : rows.stop])
        found: list[int] = self.wanted.first[images].tolist()
        return found


class CacheFill:
    """Makes sure that all activations that are wanted are in the cache.

    Args:
        store: the cache.
        wanted: what is to be there.
        make_engine: the first images (B, C, H, W) → engine; called at most once, and only if something is missing.
        tail: reads the activations; tells whether float16 does.
        width: F.
        dtype: of the activations on disk; None: to be decided.
        shared: a cache of several machines; None: there is none.
    """

    def __init__(
        self,
        store: ActivationStore,
        wanted: Sequence[TableRequest],
        make_engine: MakeEngine,
        tail: nn.Module,
        width: int,
        dtype: str | None,
        shared: SharedCache | None = None,
    ) -> None:
        self._store = store
        self._wanted = wanted
        self._make_engine = make_engine
        self._tail = tail
        self._width = width
        self._dtype = dtype
        self._shared = shared
        self._computed: list[_Shard] = []
        self._engine: Engine | None = None
        self._has_waited = False
        self._placements: list[Placement] = []
        self._locks: list[list[Lock]] = []

    def run(self, announce: Callable[[int], None]) -> list[Activations]:
        """Return the activations of each request, and compute what is missing.

        Args:
            announce: is told of how many images that is, before they are computed.

        Raises:
            CacheFullError: there is no room for them.
            OSError: the disk is full.
        """
        try:
            for wanted in self._wanted:
                self._store.merge(wanted.table)
                self._pull(wanted)
            self._look_up()
            if self._discard_damaged():
                self._look_up()
            if (missing := sum(int((~placement.written).sum()) for placement in self._placements)) > 0:
                announce(missing)
                try:
                    self._compute_all(missing)
                finally:
                    self._end_engine()  # before the upload, which may take long
                self._push()
            opened: dict[int, Activations] = {}
            for wanted, placement, locks in zip(self._wanted, self._placements, self._locks, strict=True):
                opened |= {n: Activations(placement.matrix(which), locks) for n, which in wanted.which.items()}
            return [activations for _, activations in sorted(opened.items(), key=itemgetter(0))]
        except BaseException:
            self._release()
            for wanted in self._wanted:
                self._store.remove_unwritten(wanted.table)
            raise

    def _compute_all(self, missing: int) -> None:
        """Compute and write what is missing, which is so many images, or wait until others have."""
        with counted("Running the frozen network once", missing) as advance:
            while not all(placement.written.all() for placement in self._placements):
                self._reserve(advance)
                self._compute(self._unwritten(), advance)
                self._look_up()

    def _end_engine(self) -> None:
        """Let others have what the engine holds, as long as it does not run."""
        if self._engine is not None:
            self._engine.end()

    def _share(self, work: Callable[[SharedCache], None]) -> None:
        """Give work on the shared cache, if there is one; where that cannot be done, there is a warning."""
        if self._shared is None:
            return
        try:
            work(self._shared)
        except (UserError, FileNotFoundError) as error:
            logger.warning(f"{error} Activations are not shared meanwhile.")

    def _pull(self, wanted: TableRequest) -> None:
        """Download what is missing of a table, as far as others have computed it."""
        pull = partial(SharedCache.pull, store=self._store, table=wanted.table, digests=wanted.digests)
        self._share(partial(pull, width=self._width))

    def _push(self) -> None:
        """Upload the segments into which something was written here."""
        for wanted in self._wanted:
            segments = {s.segment.directory: s.segment for s in self._computed if s.wanted is wanted}
            push = partial(SharedCache.push, store=self._store, table=wanted.table)
            self._share(partial(push, segments=segments.values()))

    def _look_up(self) -> None:
        """Find out where everything lies, and keep it from being removed."""
        with self._store.lock():
            placements = [wanted.table.locate(wanted.digests) for wanted in self._wanted]
            locks = [[segment.lock_for_use() for segment in placement.segments] for placement in placements]
        self._release()
        self._placements, self._locks = placements, locks

    def _release(self) -> None:
        for lock in chain.from_iterable(self._locks):
            lock.close()

    def _discard_damaged(self) -> bool:
        """Compare what is written with its checksums; returns whether anything is damaged, which is then discarded."""
        damaged, number = 0, 0
        for segment, shards in chain.from_iterable(place.shards(written=True) for place in self._placements):
            damaged, number = damaged + segment.verify(shards), number + len(shards)
        if damaged > 0:
            logger.warning(f"{damaged} of {number} shards of cached activations are damaged: computed again.")
        return damaged > 0

    def _reserve(self, advance: Advance) -> None:
        """Reserve space for the images that have no place yet."""
        for wanted, placement in zip(self._wanted, self._placements, strict=True):
            if not (placement.part == NOWHERE).any():
                continue
            if (dtype := wanted.table.dtype() or self._dtype) is None:
                with wanted.table.deciding(on_wait=self._before_waiting):
                    if (dtype := wanted.table.dtype()) is None:
                        self._decide(wanted, advance)
                        continue
            self._store.reserve(wanted.table, wanted.digests, self._width, dtype)
        self._look_up()

    def _decide(self, wanted: TableRequest, advance: Advance) -> None:
        """Compute the first shard of a table, decide by it in which precision the table is kept, and write it."""
        rows = SegmentHeader.describe({}, wanted.digests, self._width, "float32").rows(0)
        activations = np.concatenate(list(self._activations([(wanted, wanted.first[rows].tolist())], advance)))
        dtype = "float16"
        if (change := change_in_half(self._tail, activations)) > MAX_CHANGE:
            logger.info(f"Activations are kept as float32: float16 would change a probability by {change:.1e}.")
            dtype = "float32"
        reserved = self._store.reserve(wanted.table, wanted.digests, self._width, dtype)
        assert reserved is not None, "only who decides writes into an empty table"
        segment, lock = reserved
        with lock:
            segment.write(0, activations)
        self._computed.append(_Shard(wanted, segment, 0))

    def _unwritten(self) -> list[_Shard]:
        return [
            _Shard(wanted, segment, number)
            for wanted, placement in zip(self._wanted, self._placements, strict=True)
            for segment, numbers in placement.shards(written=False)
            for number in numbers
        ]

    def _compute(self, shards: Sequence[_Shard], advance: Advance) -> None:
        """Compute shards: first those that no other process is at, then those that another has left when it ended."""
        busy: list[_Shard] = []
        too_large = self._write(self._claim(shards, busy), advance)
        for shard in busy:  # one by one: who waits holds no claim
            claim = shard.segment.claim(shard.number, on_wait=self._before_waiting)
            too_large |= self._write([(shard, claim)], advance)
        if too_large:
            logger.warning("Some activations are too large for float16: they are computed again and kept as float32.")

    def _claim(self, shards: Sequence[_Shard], busy: list[_Shard]) -> Iterator[tuple[_Shard, Lock]]:
        """Yield shards with claims on them; those that others have claimed go to ``busy``."""
        for shard in shards:
            try:
                claim = shard.segment.claim(shard.number)
            except BlockingIOError:
                busy.append(shard)
                continue
            yield shard, claim

    def _write(self, claimed: Iterable[tuple[_Shard, Lock]], advance: Advance) -> bool:
        """Compute and write shards, and end the claims on them; returns whether one was too large for float16."""
        pending: deque[tuple[_Shard, Lock]] = deque()

        def to_compute() -> Iterator[tuple[TableRequest, list[int]]]:
            for shard, claim in claimed:
                if shard.segment.is_open(shard.number):
                    pending.append((shard, claim))
                    yield shard.wanted, shard.rows()
                else:  # another process has written it since we looked
                    shard.segment.release(shard.number, claim)
                    advance(shard.size)

        too_large = False
        try:
            for activations in self._activations(to_compute(), advance):
                shard, claim = pending[0]
                too_large |= not shard.segment.write(shard.number, activations)
                self._computed.append(shard)
                shard.segment.release(shard.number, claim)
                pending.popleft()
        finally:
            for shard, claim in pending:
                shard.segment.release(shard.number, claim)
        return too_large

    def _activations(self, groups: Iterable[tuple[TableRequest, list[int]]], advance: Advance) -> Iterator[np.ndarray]:
        """Run the trunk over groups of images, each rows of a request; yields the activations (n, F) of each group."""
        groups = iter(groups)
        if (first := next(groups, None)) is None:
            return
        engine = self._engine or self._start(*first)
        sizes: deque[int] = deque()

        def batches() -> Iterator[tuple[ImageBatcher, list[int]]]:
            for wanted, rows in chain([first], groups):
                sizes.append(len(rows))
                paths = wanted.request.samples.paths
                for _, of_shard in groupby(rows, key=lambda row: shard_url(paths[row])):
                    part = list(of_shard)
                    for start in range(0, len(part), engine.batch_size):
                        yield wanted.batcher, part[start : start + engine.batch_size]

        parts: list[np.ndarray] = []
        for part in run(engine, batches()):
            parts.append(part)
            advance(len(part))
            if sum(map(len, parts)) == sizes[0]:
                sizes.popleft()
                yield np.concatenate(parts)
                parts = []

    def _start(self, wanted: TableRequest, rows: list[int]) -> Engine:
        self._engine = self._make_engine(wanted.batcher(rows[:FIRST_IMAGES]))
        logger.info(f"The frozen network runs on {self._engine.runs_on}.")
        return self._engine

    def _before_waiting(self) -> None:
        """Give the other process what the engine holds, as it may wait for the same GPUs; say once that we wait."""
        self._end_engine()
        if not self._has_waited:
            logger.info("Another process computes these activations: waiting for it.")
        self._has_waited = True
