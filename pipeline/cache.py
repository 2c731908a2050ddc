"""Cache: what the activation cache holds, and how to get rid of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.console import print_table, say, warn
from graftline.errors import UserError
from graftline.features.cache import Features
from graftline.features.segment import Segment
from graftline.features.store import SECONDS_PER_DAY, CacheEntryInfo, in_words
from graftline.pipeline.program import program
from graftline.pipeline.stage import StageResult
from graftline.training.kept_answer import forget_answers

COLUMNS = ("name", "network", "boundary", "view", "images", "size", "type", "last used")


@dataclass(frozen=True)
class CacheResult(StageResult):
    """What the cache holds, and what was removed.

    Attributes:
        entries: what is left, the one that was used last first.
        removed: names of the entries of which something was removed.
        removed_bytes: how much.
    """

    entries: Sequence[CacheEntryInfo] = ()
    removed: Sequence[str] = ()
    removed_bytes: int = 0


@dataclass(frozen=True)
class Cache:
    """The stage ``cache`` (Hydra target of conf/cache.yaml).

    Attributes:
        features: the activation cache.
        clear: what is removed. ``all``: every entry, the exported trunks, and what trainings have found out about
            depths and caching. ``unused``: entries that were not used for ``days``, and the exported trunks. An entry's
            name: that entry. None: nothing.
        days: without use after which ``unused`` removes an entry, at least 0.
    """

    features: Features
    clear: str | None = None
    days: float = 30

    def __post_init__(self) -> None:
        if self.days < 0:
            raise UserError(f"days is {self.days}, but must be at least 0.")

    def run(self, directory: Path) -> CacheResult:  # noqa: ARG002 - what it does is done to the cache
        """Remove what is to go, and list what is left."""
        store = self.features.store
        before = store.entries()
        kept = self._remove(self._chosen(before)) if self.clear is not None else 0
        if self.clear in ("all", "unused"):  # what comes of them is kept, and they are made again in seconds
            store.remove_trunks()
        if self.clear == "all":
            forget_answers(self.features)
        left = store.entries()
        self._print(left, kept)
        sizes = {entry.name: entry.bytes for entry in left}
        freed = {entry.name: entry.bytes - sizes.get(entry.name, 0) for entry in before}
        removed, removed_bytes = [name for name, size in freed.items() if size > 0], sum(freed.values())
        trunks = store.trunk_bytes()
        table = [
            ("activations", f"{in_words(sum(sizes.values()))} of {in_words(store.max_bytes)} (features.max_gb)"),
            ("exported trunks", in_words(trunks)),
        ]
        if self.clear is not None:
            number = "1 entry" if len(removed) == 1 else f"{len(removed)} entries"
            table.append(("removed", f"{in_words(removed_bytes)} of {number}"))
        facts = {
            "entries": [{"name": name, "bytes": size} for name, size in sizes.items()],
            "bytes": sum(sizes.values()),
            "trunk_bytes": trunks,
            "removed": removed,
        }
        return CacheResult(facts=facts, table=table, entries=left, removed=removed, removed_bytes=removed_bytes)

    def _chosen(self, entries: Sequence[CacheEntryInfo]) -> list[Segment]:
        """Return the segments that are to go."""
        if self.clear == "unused":
            return self.features.store.unused(self.days)
        chosen = [entry for entry in entries if self.clear in ("all", entry.name)]
        if not chosen and self.clear != "all":
            raise UserError(
                f"There is no entry {self.clear} to clear: give all, unused, or a name that {program()} cache lists."
            )
        return [segment for entry in chosen for segment in entry.segments]

    def _remove(self, segments: Sequence[Segment]) -> int:
        """Remove segments; returns how many are in use and stay."""
        return len(segments) - len(self.features.store.remove(segments))

    def _print(self, entries: Sequence[CacheEntryInfo], kept: int) -> None:
        if entries:
            print_table("Cached activations", COLUMNS, map(_row, entries))
        else:
            say(f"No activations are cached in {self.features.directory}.")
        if outdated := [entry.name for entry in entries if not entry.is_readable]:
            say(
                f"{', '.join(outdated)}: of an earlier format, or left by a run that was killed; not read any more, "
                "and the first to make room. clear=NAME or clear=all removes them."
            )
        if kept > 0:
            warn(f"{kept} of what was to be removed is in use by another process, and stays.")


def _row(entry: CacheEntryInfo) -> tuple[str, ...]:
    if not entry.is_readable:
        return (entry.name, *[""] * 4, in_words(entry.bytes), "not readable", "")
    key = entry.headers[0].key
    dtypes = " and ".join(sorted({header.dtype for header in entry.headers}))
    return (
        entry.name,
        _first(key.get("network", "")),
        str(key.get("boundary", "")),
        str(key.get("view", "plain")),
        f"{sum(header.images for header in entry.headers):,}",
        in_words(entry.bytes),
        dtypes if entry.complete else f"{dtypes}, incomplete",
        _ago(time.time() - entry.used),
    )


def _first(network: Any) -> str:
    """Return a network's name, which may stand before what it was built with."""
    return str(network[0] if isinstance(network, list) and network else network)


def _ago(seconds: float) -> str:
    """Return a time span in words.

    >>> _ago(30), _ago(7200), _ago(3 * 86_400)
    ('just now', '2 h ago', '3 days ago')
    """
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min ago"
    if seconds < 2 * SECONDS_PER_DAY:
        return f"{seconds / 3600:.0f} h ago"
    return f"{seconds / SECONDS_PER_DAY:.0f} days ago"
