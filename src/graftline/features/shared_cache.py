"""Activations that several machines share: whole segments at a URL, beside the cache on the disk of each.

<url>/<digest of a key>/<name>/    a segment of that table as it lies on a disk; segment.json is written last

Nothing is ever changed there, so that machines need no locks; what is no longer wanted is removed by a rule of the
storage, such as one for objects that are 90 days old.

Letters: U distinct images, F numbers per image.
"""

import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np

from graftline.data.references import find_url
from graftline.data.remote import download, list_urls, require_no_secret, upload
from graftline.errors import UserError
from graftline.features.activation_table import ActivationTable
from graftline.features.digests import NOWHERE, Digests
from graftline.features.segment import FORMAT, Segment, SegmentHeader, is_written
from graftline.features.store import ActivationStore, CacheFullError, format_bytes
from graftline.files import digest
from graftline.locks import Lock

logger = logging.getLogger(__name__)

HEADER = "segment.json"
INDEX, DATA = ("digests.npy", "order.npy"), ("activations.bin", "shards.bin")


@dataclass(frozen=True)
class SharedCache:
    """A folder of tables at a URL.

    Attributes:
        url: of the folder, which can be listed and written to.

    Raises:
        UserError: that is no such URL.
    """

    url: str

    def __post_init__(self) -> None:
        require_no_secret(self.url, "Features.shared")
        if (url := find_url(self.url)) is None or url.startswith("http"):
            raise UserError(
                f"Features.shared={self.url} is no storage that can be written to: give a URL such as "
                "s3://bucket/activations, or null."
            )

    def pull(self, store: ActivationStore, table: ActivationTable, digests: Digests, width: int) -> None:
        """Download the segments of a table that hold some of U images which the cache on the disk has not.

        Those for which there is no room stay where they are.

        Args:
            store: the cache.
            table: of it.
            digests: of the images.
            width: F.

        Raises:
            OSError: the disk is full, or a file is gone.
            UserError: the storage cannot be reached.
        """
        with Lock(store.directory / "pulling", shared=False, on_wait=lambda: None):
            with store.lock():
                is_missing = ~table.locate(digests).written  # (U,)
            for name in self._names(table) if is_missing.any() else ():
                with TemporaryDirectory(prefix="pulling-", dir=store.directory) as folder:
                    held = self._pull(store, table, Path(folder) / name, digests, is_missing, width)
                is_missing[held] = False
                if not is_missing.any():
                    return

    def _pull(
        self,
        store: ActivationStore,
        table: ActivationTable,
        folder: Path,
        digests: Digests,
        is_missing: np.ndarray,
        width: int,
    ) -> np.ndarray:
        """Download a segment to a folder, and from there to a table, if it is of use; returns which images it has."""
        source, none = f"{self.url}/{table.directory.name}/{folder.name}", np.empty(0, np.int64)
        header = self._header(source, folder)
        if header is None or header.width != width:
            return none
        for file in INDEX:
            download(f"{source}/{file}", folder / file)
        found = digests.find(np.load(folder / INDEX[0], allow_pickle=False))
        held: np.ndarray = found[found != NOWHERE]
        if not is_missing[held].any():
            return none
        with suppress(CacheFullError):
            with store.lock():
                store.make_room(header.bytes)
            logger.info(f"{format_bytes(header.bytes)} of activations come from {source}.")
            for file in DATA:
                download(f"{source}/{file}", folder / file)
            segment = Segment(folder)
            if segment.header is None or segment.digests is None:
                logger.warning(f"The activations in {source} are damaged: they are left alone.")
                return none
            (folder / "used").touch()
            with store.lock():
                store.make_room(header.bytes)
                table.directory.mkdir(exist_ok=True)
                folder.rename(table.next_directory())
            return held
        return none

    def _header(self, source: str, folder: Path) -> SegmentHeader | None:
        """Return what a segment at a URL is; None for one of another format, or that is none of ours."""
        download(f"{source}/{HEADER}", folder / HEADER)
        try:
            header = SegmentHeader(**json.loads((folder / HEADER).read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            return None
        return header if header.format == FORMAT and header.dtype in ("float16", "float32") else None

    def push(self, store: ActivationStore, table: ActivationTable, segments: Iterable[Segment]) -> None:
        """Upload segments of a table, but for those that are not whole and those with the same images as one there.

        Processes of this machine do so one after the other: each of those that have filled a segment together has it.

        Raises:
            UserError: the storage cannot be reached, or not be written to.
        """
        with Lock(store.directory / "pushing", shared=False, on_wait=lambda: None):
            for segment in segments:
                header = segment.header
                if header is None or not is_written(segment.states()).all():
                    continue
                content = digest([header.digests_crc, header.images, header.width, header.dtype])
                if any(name.startswith(content) for name in self._names(table)):
                    continue
                target = f"{self.url}/{table.directory.name}/{content}-{uuid4().hex[:8]}"
                for file in (*INDEX, *DATA, HEADER):
                    upload(segment.directory / file, f"{target}/{file}")
                logger.info(f"{format_bytes(header.bytes)} of activations are shared at {target}.")

    def _names(self, table: ActivationTable) -> list[str]:
        """Return the names of the segments of a table that are there."""
        return [url.split("/")[-2] for url in list_urls(f"{self.url}/{table.directory.name}", f"/{HEADER}")]
