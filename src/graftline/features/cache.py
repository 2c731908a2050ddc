"""The activation cache: what the frozen trunk gives for each image, computed once and read from disk at every epoch.

Letters: B batch, N images, F numbers per image that cross the boundary.
"""

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import Progress
from torch import Tensor, nn

from graftline.console import progress
from graftline.errors import UserError
from graftline.features.engine import Engine
from graftline.features.frozen_pass import ActivationRequest, ImageBatcher, run
from graftline.features.loader import activation_loader
from graftline.features.precision import MAX_CHANGE, change_in_half
from graftline.features.shards import ActivationEntry, Description, HalfPrecisionError
from graftline.features.store import GIGABYTE, ActivationStore, CacheFullError, in_words
from graftline.locks import Lock

logger = logging.getLogger(__name__)

__all__ = ["ActivationRequest", "Activations", "CacheFullError", "Features", "ImageBatcher", "activation_loader"]

FIRST_IMAGES = 4  # on which the engine is compared with torch
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Activations:
    """An entry of the cache in use; while this object lives, nobody removes it from the disk.

    Attributes:
        array: (N, F) float16 or float32, memory-mapped.
        lock: held.
    """

    array: np.ndarray
    lock: Lock


@dataclass(frozen=True)
class Features:
    """Whether and how the frozen trunk's activations are cached (Hydra target of conf/features/*.yaml).

    Attributes:
        cache: compute the activations once; False: run the frozen trunk at every step, with fresh augmentation;
            ``auto``: as is predicted to take less time.
        views: augmented versions of each training image, one per epoch in turn; 0: the plain version only.
        directory: where activations and exported trunks lie.
        max_gb: what all activations together may take on disk, 10^9 bytes.
        precision: of the activations on disk; ``auto``: float16 where that changes no predicted probability by more
            than 1e-3, else float32.

    Raises:
        UserError: a value that cannot be.
    """

    cache: bool | Literal["auto"] = True
    views: int = 0
    directory: str = "cache/activations"
    max_gb: float = 20.0
    precision: Literal["auto", "float16", "float32"] = "auto"

    def __post_init__(self) -> None:
        if self.views < 0:
            raise UserError(f"features.views is {self.views}, but must be at least 0.")
        if not self.max_gb >= 0:  # also catches NaN
            raise UserError(f"features.max_gb is {self.max_gb}, but must be at least 0.")
        if self.precision not in ("auto", "float16", "float32"):
            raise UserError(f"features.precision is {self.precision!r}: use auto, float16 or float32.")

    @property
    def store(self) -> ActivationStore:
        """Where the entries lie."""
        return ActivationStore(Path(self.directory), self.max_gb * GIGABYTE)

    def predict_bytes(self, width: int, images: int) -> int:
        """Return what the activations (N, F) of ``images``, all views of them counted, will take on disk."""
        return width * images * (4 if self.precision == "float32" else 2)

    def missing(self, jobs: Sequence[ActivationRequest]) -> int:
        """Return of how many images, all views of them counted, no activations are there or they are damaged."""
        return sum(_missing_images(self._entry(job), job) for job in jobs)

    def open(
        self, jobs: Sequence[ActivationRequest], make_engine: Callable[[Tensor], Engine], tail: nn.Module, width: int
    ) -> list[Activations]:
        """Return the activations of each job, from disk or computed now.

        Args:
            jobs: what is wanted.
            make_engine: the first images (B, C, H, W) → engine; called at most once, and only if something is missing.
            tail: reads the activations; tells whether float16 does.
            width: F.

        Raises:
            CacheFullError: they would take more than ``max_gb``, or than those in use leave of it.
            UserError: the disk is full.
        """
        store, images = self.store, sum(len(job.samples.paths) for job in jobs)
        _check_writable(store.directory)
        if (needed := self.predict_bytes(width, images)) > store.max_bytes:
            store.make_room(needed)  # it says why not
        entries = [self._entry(job) for job in jobs]
        locks = [entry.lock_for_use() for entry in entries]
        try:
            todo = [(entry, job, _missing_images(entry, job)) for entry, job in zip(entries, jobs, strict=True)]
            if missing := sum(images for *_, images in todo):
                self._announce(missing, width)
                filler = _Filler(self, make_engine, tail, width)
                with progress("Running the frozen network once", missing) as bar:
                    for entry, job, images in todo:
                        if images > 0:
                            filler.fill(entry, job, bar)
            return [_opened(entry, lock) for entry, lock in zip(entries, locks, strict=True)]
        except BaseException:
            for entry, lock in zip(entries, locks, strict=True):
                lock.close()
                if entry.description is None:
                    store.remove(entry.directory.name)
            raise

    def _entry(self, job: ActivationRequest) -> ActivationEntry:
        return self.store.entry({**job.key, "precision": self.precision})

    def _announce(self, images: int, width: int) -> None:
        each = self.predict_bytes(width, 1)
        doubled = ", twice that should float16 not do" if self.precision == "auto" else ""
        size = f"{in_words(images * each)} of activations ({images:,} images of {in_words(each)}{doubled})"
        logger.info(
            f"{size} go to {self.directory}, which may hold {in_words(self.store.max_bytes)} (features.max_gb)."
        )


class _Filler:
    """Computes what is missing of entries, with one engine for all."""

    def __init__(
        self, features: Features, make_engine: Callable[[Tensor], Engine], tail: nn.Module, width: int
    ) -> None:
        self._features = features
        self._make_engine = make_engine
        self._tail = tail
        self._width = width
        self._engine: Engine | None = None

    def fill(self, entry: ActivationEntry, job: ActivationRequest, bar: Progress) -> None:
        """Compute the shards of an entry that nobody has written, or that are damaged.

        Raises:
            CacheFullError: there is no room within the limit.
            UserError: the disk is full.
        """
        try:
            with entry.lock_for_writing(
                lambda: logger.info("Another process computes these activations: waiting for it.")
            ):
                try:
                    self._fill(entry, job, bar, entry.description)
                except HalfPrecisionError:
                    logger.warning(
                        "Some activations are too large for float16: they are computed again and kept as float32."
                    )
                    self._fill(entry, job, bar, self._create(entry, job, "float32"))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            free = in_words(shutil.disk_usage(entry.directory.parent).free)
            raise UserError(
                f"The disk is full: activations go to {self._features.directory}, where {free} are left. Make room "
                "(make cache lists what lies there), choose another features.directory, or train with features=live."
            ) from error

    def _fill(
        self, entry: ActivationEntry, job: ActivationRequest, bar: Progress, described: Description | None
    ) -> None:
        shape = described or self._describe(job, "float32")
        missing = list(range(shape.num_shards))
        if described is not None:
            missing, damaged = entry.written(described)
            if damaged:
                logger.warning(
                    f"{len(damaged)} of {shape.num_shards} shards of cached activations are damaged: computed again."
                )
            missing = sorted(missing + damaged)
        for shard, activations in self._compute(job, shape, missing, bar):
            if described is None:
                described = self._create(entry, job, self._precision(activations))
            entry.write(described, shard, activations)

    def _compute(
        self, job: ActivationRequest, shape: Description, shards: Sequence[int], bar: Progress
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Run the trunk over the images of some shards; yields the number of a shard and its activations (n, F)."""
        if not shards:
            return
        decoder = ImageBatcher(job)
        if self._engine is None:
            self._engine = self._make_engine(decoder(shape.rows(shards[0])[:FIRST_IMAGES]))
            logger.info(f"The frozen network runs on {self._engine.runs_on}.")
        size = self._engine.batch_size
        batches = [[rows[i : i + size] for i in range(0, len(rows), size)] for rows in map(shape.rows, shards)]
        results = run(self._engine, decoder, [batch for one in batches for batch in one])
        for shard, one in zip(shards, batches, strict=True):
            parts = []
            for _ in one:
                parts.append(next(results))
                bar.advance(bar.task_ids[0], len(parts[-1]))
            yield shard, np.concatenate(parts)

    def _precision(self, activations: np.ndarray) -> str:
        """Decide on the first shard, (n, F) float32."""
        if self._features.precision != "auto":
            return self._features.precision
        change = change_in_half(self._tail, activations)
        if change <= MAX_CHANGE:
            return "float16"
        logger.info(f"Activations are kept as float32: float16 would change a probability by {change:.1e}.")
        return "float32"

    def _create(self, entry: ActivationEntry, job: ActivationRequest, dtype: str) -> Description:
        described = self._describe(job, dtype)
        self._features.store.reserve(entry, described)
        return described

    def _describe(self, job: ActivationRequest, dtype: str) -> Description:
        key = {**job.key, "precision": self._features.precision}
        return Description(key, len(job.samples.paths), self._width, dtype, time.time(), time.time())


def _check_writable(directory: Path) -> None:
    """Make the folder of the cache if need be.

    Raises:
        UserError: it cannot be made, or not be written to; locks and times of use are written even to what is complete.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"features.directory={directory} cannot be made ({error.strerror}): give another.") from error
    if not os.access(directory, os.W_OK):
        raise UserError(f"features.directory={directory} cannot be written to: give another, or change its rights.")


def _missing_images(entry: ActivationEntry, job: ActivationRequest) -> int:
    """Return how many images' activations are not there, or damaged."""
    described = entry.description
    if described is None:
        return len(job.samples.paths)
    missing, damaged = entry.written(described)
    return sum(len(described.rows(shard)) for shard in missing + damaged)


def _opened(entry: ActivationEntry, lock: Lock) -> Activations:
    entry.touch()
    described = entry.description
    assert described is not None
    return Activations(entry.array(described), lock)
