"""How large the index of the activation cache is, and how fast: `python benchmarks/cache_scale.py --entries 10000000`.

Writes one table of that many made-up images, with one number each for activations, and looks images up in it as
`Features.missing` and `Features.open` do: from the hex digests of a split to where each image's activations lie.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from graftline.console import print_table
from graftline.features import segment
from graftline.features.activation_table import ActivationTable
from graftline.features.digests import Digests, distinct, read_digests
from graftline.features.store import ActivationStore, format_bytes

T = TypeVar("T")

QUERIES = 100_000  # images of one request


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what ``work`` does, and the seconds it takes."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def fill(store: ActivationStore, table: ActivationTable, digests: Digests) -> Path:
    """Write the table, in few large shards; returns the folder of its one segment."""
    segment.MAX_SHARD_IMAGES = 2**20
    reserved = store.reserve(table, digests, width=1, dtype="float16")
    assert reserved is not None
    written, lock = reserved
    with lock:
        assert written.header is not None
        for shard in range(written.header.num_shards):
            written.write(shard, np.zeros((len(written.header.rows(shard)), 1), np.float32))
    return written.directory


def look_up(store: ActivationStore, table: ActivationTable, sha256: list[str]) -> int:
    """Return how many of some images have activations."""
    digests, _, which = distinct(read_digests(sha256))
    with store.lock():
        return int(table.locate(digests).written[which].sum())


def main(entries: int) -> None:
    """Measure and print."""
    generator = np.random.default_rng(0)
    values = generator.integers(0, 2**64, (2, entries), np.uint64)
    known = generator.integers(0, entries, QUERIES)
    requests = {
        f"{QUERIES:,} images that are there": values[:, known],
        f"{QUERIES:,} of which half are new": np.where(known % 2, values[:, known], values[:, known] + np.uint64(1)),
        "all, in order": values,
        "all, in another order": values[:, generator.permutation(entries)],
    }
    with tempfile.TemporaryDirectory() as folder:
        store = ActivationStore(Path(folder), 1e12)
        table = store.table({"made": "up"})
        (digests, _, _), sorting = timed(lambda: distinct(values))
        directory, writing = timed(lambda: fill(store, table, digests))
        index = sum((directory / name).stat().st_size for name in ("digests.npy", "order.npy", "shards.bin"))
        _, opening = timed(lambda: [one.digests for one in table.segments()])
        rows = [
            ("index", f"{format_bytes(index)}, {index / entries:.1f} bytes per image"),
            ("writing the table", f"{sorting + writing:.1f} s"),
            ("opening it, its checksum looked at", f"{opening:.2f} s"),
        ]
        for name, wanted in requests.items():
            sha256 = [f"{first:016x}{second:016x}" for first, second in wanted.T.tolist()]
            found, seconds = timed(lambda sha256=sha256: look_up(store, table, sha256))  # type: ignore[misc]  # a default binds the loop's value
            rate = 60 * len(sha256) / seconds / 1e6
            rows.append((f"{name}: {found:,} found", f"{seconds:.2f} s, {rate:,.0f} M look-ups/min"))
    print_table(f"Activation cache of {entries:,} images", ("", "measured"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    main(parser.parse_args().entries)
