"""Cache: what the activation cache holds, and how to get rid of it."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.console import print_table, say, warn
from graftline.errors import UserError
from graftline.features.cache import Features
from graftline.features.store import SECONDS_PER_DAY, CacheEntryInfo, in_words
from pipeline.stage import StageResult


@dataclass(frozen=True)
class Cache:
    """The stage ``cache`` (Hydra target of conf/cache.yaml)."""

    features: Features
    clear: str | None = None
    days: float = 30

    def __post_init__(self) -> None:
        if self.days < 0:
            raise UserError(f"days is {self.days}, but must be at least 0.")

    def run(self, directory: Path) -> StageResult:  # noqa: ARG002 - what it does is done to the cache
        """Remove what is to go, and list what is left."""
        store = self.features.store
        removed = self._remove(self._chosen(store.entries())) if self.clear is not None else []
        if self.clear in ("all", "unused"):  # what comes of them is kept, and they are made again in seconds
            store.remove_trunks()
        left = store.entries()
        if left:
            print_table("Cached activations", ("name", *_COLUMNS), (_row(entry) for entry in left))
        else:
            say(f"No activations are cached in {self.features.directory}.")
        size, trunks = sum(entry.bytes for entry in left), store.trunk_bytes()
        table = [
            ("activations", f"{in_words(size)} of {in_words(store.max_bytes)} (features.max_gb)"),
            ("exported trunks", in_words(trunks)),
        ]
        if self.clear is not None:
            number = "1 entry" if len(removed) == 1 else f"{len(removed)} entries"
            table.append(("removed", f"{number}, {in_words(sum(entry.bytes for entry in removed))}"))
        facts = {
            "entries": [{"name": entry.name, "bytes": entry.bytes} for entry in left],
            "bytes": size,
            "trunk_bytes": trunks,
            "removed": [entry.name for entry in removed],
        }
        return StageResult(facts=facts, table=table)

    def _chosen(self, entries: Sequence[CacheEntryInfo]) -> Sequence[CacheEntryInfo]:
        """Return the entries that are to go."""
        if self.clear == "all":
            return entries
        if self.clear == "unused":
            return self.features.store.unused(self.days)
        chosen = [entry for entry in entries if entry.name == self.clear]
        if not chosen:
            raise UserError(
                f"There is no entry {self.clear} to clear: give all, unused, or a name that make cache lists."
            )
        return chosen

    def _remove(self, chosen: Iterable[CacheEntryInfo]) -> list[CacheEntryInfo]:
        removed = []
        for entry in chosen:
            if self.features.store.remove(entry.name):
                removed.append(entry)
            else:
                warn(f"{entry.name} is in use: kept.")
        return removed


_COLUMNS = ("dataset", "network", "boundary", "split", "images", "size", "type", "last used")


def _row(entry: CacheEntryInfo) -> tuple[str, ...]:
    described = entry.description
    if described is None:
        return (entry.name, *[""] * 5, in_words(entry.bytes), "incomplete", "")
    key = described.key
    view = f" view {key['view']}" if "view" in key else ""
    return (
        entry.name,
        str(key.get("dataset", "")),
        _first(key.get("network", "")),
        str(key.get("boundary", "")),
        f"{key.get('split', '')}{view}",
        f"{described.images:,}",
        in_words(entry.bytes),
        described.dtype if entry.complete else f"{described.dtype}, incomplete",
        _ago(time.time() - described.used),
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
