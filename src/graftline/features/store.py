"""All entries of the activation cache: where they lie, what they take, and which of them make room for others."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.features.shards import ActivationEntry, Description
from graftline.files import digest
from graftline.locks import Lock

GIGABYTE = 1e9
SECONDS_PER_DAY = 86_400.0


class CacheFullError(Exception):
    """The activations are not to be kept; the message says why, as a part of a sentence."""


@dataclass(frozen=True)
class CacheEntryInfo:
    """An entry as `make cache` shows it.

    Attributes:
        name: the digest of its key.
        description: None: what is left of an entry that cannot be used.
        bytes: on disk.
        complete: whether all shards were written.
    """

    name: str
    description: Description | None
    bytes: int
    complete: bool

    @property
    def used(self) -> float:
        """When it was last opened, seconds since 1970; what cannot be used was never."""
        return self.description.used if self.description is not None else 0.0


@dataclass(frozen=True)
class ActivationStore:
    """A folder of entries and exported trunks.

    Attributes:
        directory: the folder.
        max_bytes: what all entries and exported trunks together may take.
    """

    directory: Path
    max_bytes: float

    def entry(self, key: dict[str, Any]) -> ActivationEntry:
        """Return the entry of a key, whether it is there or not."""
        return ActivationEntry(self.directory / digest(key))

    def trunk_file(self, key: dict[str, Any]) -> Path:
        """Return where the exported trunk that ``key`` describes lies."""
        return self.directory / "trunks" / f"{digest(key)}.onnx"

    def entries(self) -> list[CacheEntryInfo]:
        """Return all entries, the one that was used last first."""
        folders = sorted(path.parent for path in self.directory.glob("*/used"))
        listed = [
            CacheEntryInfo(
                f.name, ActivationEntry(f).description, ActivationEntry(f).bytes(), ActivationEntry(f).is_complete()
            )
            for f in folders
        ]
        return sorted(listed, key=lambda entry: -entry.used)

    def trunk_bytes(self) -> int:
        """Return what the exported trunks take."""
        return sum(path.stat().st_size for path in self.directory.glob("trunks/*"))

    def reserve(self, entry: ActivationEntry, description: Description) -> None:
        """Give an entry its space, removing those not used for longest where there is too little.

        Raises:
            CacheFullError: what is allowed does not suffice, though nothing that is not in use was left.
            OSError: the disk has no room.
        """
        with Lock(self.directory / "lock", shared=False, on_wait=lambda: None):
            entry.discard()
            self.make_room(description.bytes)
            entry.create(description)

    def make_room(self, needed: float) -> None:
        """Remove exported trunks, then entries, the one not used for longest first, until ``needed`` bytes more fit.

        Raises:
            CacheFullError: that cannot be; entries in use are not removed.
        """
        if needed > self.max_bytes:
            raise CacheFullError(
                f"the activations would take {in_words(needed)}, more than the {in_words(self.max_bytes)} "
                "of features.max_gb"
            )
        entries = self.entries()
        taken = sum(entry.bytes for entry in entries) + self.trunk_bytes()
        if taken + needed > self.max_bytes:  # they are made again in seconds
            taken -= self.trunk_bytes()
            self.remove_trunks()
        while taken + needed > self.max_bytes and entries:
            oldest = entries.pop()
            if self.remove(oldest.name):
                taken -= oldest.bytes
        if taken + needed > self.max_bytes:
            raise CacheFullError(
                f"the activations would take {in_words(needed)}, and what is in use leaves "
                f"{in_words(max(0.0, self.max_bytes - taken))} of the {in_words(self.max_bytes)} of features.max_gb"
            )

    def remove(self, name: str) -> bool:
        """Remove an entry; returns whether that could be, as nobody uses it."""
        folder = self.directory / name
        try:
            with Lock(folder / "used", shared=False):
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            return False
        return True

    def remove_trunks(self) -> None:
        """Remove the exported trunks; they are made again when they are needed."""
        shutil.rmtree(self.directory / "trunks", ignore_errors=True)

    def unused(self, days: float) -> Sequence[CacheEntryInfo]:
        """Return the entries that were not used for some days."""
        return [entry for entry in self.entries() if time.time() - entry.used >= days * SECONDS_PER_DAY]


def in_words(size: float) -> str:
    """Return a number of bytes for a person.

    >>> in_words(784_000), in_words(3.14e9)
    ('784 KB', '3.1 GB')
    """
    for unit, factor in (("GB", GIGABYTE), ("MB", 1e6), ("KB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}" if size < 100 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size:.0f} bytes"
