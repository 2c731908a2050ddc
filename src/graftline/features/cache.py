"""The activation cache: what the frozen trunk gives for each image, computed once and read from disk at every epoch.

Letters: B batch, C channels, H height, W width, N images, F numbers per image that cross the boundary.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from graftline.errors import UserError, no_room
from graftline.features.fill import Activations, CacheFill, MakeEngine, TableRequest
from graftline.features.frozen_pass import ActivationRequest, ImageBatcher
from graftline.features.loader import activation_loader
from graftline.features.shared_cache import SharedCache
from graftline.features.store import GIGABYTE, ActivationStore, CacheFullError, format_bytes
from graftline.files import check_folder

logger = logging.getLogger(__name__)

__all__ = ["ActivationRequest", "Activations", "CacheFullError", "Features", "ImageBatcher", "activation_loader"]


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
        shared: URL of a folder, such as ``s3://bucket/activations``, by which several machines share what each has
            computed; None: they do not.

    Raises:
        UserError: a value that cannot be.
    """

    cache: bool | Literal["auto"] = True
    views: int = 0
    directory: str = "cache/activations"
    max_gb: float = 20.0
    precision: Literal["auto", "float16", "float32"] = "auto"
    shared: str | None = None

    def __post_init__(self) -> None:
        if self.views < 0:
            raise UserError(f"Features.views is {self.views}, it must be at least 0.")
        if not self.max_gb >= 0:  # also catches NaN
            raise UserError(f"Features.max_gb is {self.max_gb}, it must be at least 0.")
        if self.precision not in ("auto", "float16", "float32"):
            raise UserError(f"Features.precision is {self.precision!r}: use auto, float16 or float32.")
        if self.shared is not None:
            SharedCache(self.shared)  # it says what is wrong with it

    def check(self) -> None:
        """Make sure that the directory can be written to: locks and times of use are, even in one that is complete.

        Raises:
            UserError: it cannot.
        """
        check_folder(Path(self.directory), "Features.directory")

    @property
    def store(self) -> ActivationStore:
        """Where the activations lie."""
        return ActivationStore(Path(self.directory), self.max_gb * GIGABYTE)

    def predict_bytes(self, width: int, images: int) -> int:
        """Return what the activations (N, F) of ``images``, all views of them counted, will take on disk."""
        return width * images * (4 if self.precision == "float32" else 2)

    def missing(self, requests: Sequence[ActivationRequest]) -> int:
        """Return how many images, all views of them counted, would have to be computed; checksums are not looked at.

        Raises:
            UserError: the directory cannot be written to.
        """
        wanted = self._by_table(requests)
        if not self.store.directory.exists():
            return sum(len(one.digests) for one in wanted)
        self.check()
        with self.store.lock():
            return sum(int((~one.table.locate(one.digests).written).sum()) for one in wanted)

    def open(
        self, requests: Sequence[ActivationRequest], make_engine: MakeEngine, tail: nn.Module, width: int
    ) -> list[Activations]:
        """Return the activations of each request, from disk or computed now.

        All processes of a distributed training may call this at once: they share what is to be computed.

        Args:
            requests: what is wanted.
            make_engine: the first images (B, C, H, W) → engine; called at most once, and only if something is missing.
            tail: reads the activations; tells whether float16 does.
            width: F.

        Raises:
            CacheFullError: they would take more than ``max_gb``, or than those in use leave of it.
            UserError: the disk is full.
        """
        store, wanted = self.store, self._by_table(requests)
        self.check()
        store.directory.mkdir(parents=True, exist_ok=True)
        if (needed := self.predict_bytes(width, sum(len(one.digests) for one in wanted))) > store.max_bytes:
            store.make_room(needed)  # it says why not
        dtype = None if self.precision == "auto" else self.precision
        try:
            shared = None if self.shared is None else SharedCache(self.shared.rstrip("/"))
            fill = CacheFill(store, wanted, make_engine, tail, width, dtype, shared)
            return fill.run(lambda number: self._announce(number, width))
        except OSError as error:
            if (sentence := no_room(error)) is None:
                raise
            raise UserError(
                f"{sentence} Or choose another Features.directory, or begin a new run with Features.cache=False."
            ) from error

    def _by_table(self, requests: Sequence[ActivationRequest]) -> list[TableRequest]:
        """Return what is wanted of each table."""
        groups: dict[Path, dict[int, ActivationRequest]] = {}
        tables = [self.store.table({**request.key, "precision": self.precision}) for request in requests]
        for number, (table, request) in enumerate(zip(tables, requests, strict=True)):
            groups.setdefault(table.directory, {})[number] = request
        return [TableRequest.of(tables[min(group)], group) for group in groups.values()]

    def _announce(self, images: int, width: int) -> None:
        size = self.predict_bytes(width, images)
        kind = "float32" if self.precision == "float32" else "float16"
        doubled = f", or {format_bytes(2 * size)} as float32" if self.precision == "auto" else ""
        logger.info(
            f"Caching the activations of {images:,} images in {self.directory}: {format_bytes(size)} as {kind}{doubled}"
            f" (at most Features.max_gb={self.max_gb:g} in all)."
        )
        if outdated := sum(entry.bytes for entry in self.store.entries() if not entry.is_readable):
            logger.info(
                f"{format_bytes(outdated)} there are of an earlier format: they are not read, and make room first."
            )
