"""Measure what ingest takes for many images in shards: `python benchmarks/scale.py --images 10000 100000 1000000`.

Each image is another PNG of 16 x 16 px in plain tars of 10,000, as another tool writes them. Each step runs in a
process of its own, on one core, whose peak of memory the kernel tells: the index of the tars; a first ingest; one of
which nothing is new; and one after 1 % more images have come, which inherits all splits.
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import struct
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from graftline.console import print_table, say
from graftline.data.ingest import Ingest
from graftline.data.sources.shards import Shards
from graftline.data.split import Split

SIDE = 16
PER_SHARD = 10_000
CLASSES = 10


def make_shards(folder: Path, first: int, count: int) -> None:
    """Write images ``first`` to ``first + count`` into tars, each with its class."""
    folder.mkdir(exist_ok=True)
    for start in range(first, first + count, PER_SHARD):
        pixels = np.random.default_rng(start).integers(0, 256, (PER_SHARD, SIDE, 1 + SIDE), dtype=np.uint8)
        pixels[:, :, 0] = 0  # the filter of each line
        with tarfile.open(folder / f"tiny-{start // PER_SHARD:06}.tar", "w") as tar:
            for number in range(start, min(start + PER_SHARD, first + count)):
                _add(tar, f"{number:09}.png", make_png(pixels[number - start].tobytes()))
                _add(tar, f"{number:09}.cls", str(number % CLASSES).encode())


def make_png(lines: bytes) -> bytes:
    """Return a gray PNG of its lines, written by hand as no encoder is that fast."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 0)), (b"IEND", b"")):
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(kind + content))]
    return b"".join(parts)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def index(folder: Path) -> None:
    """Index the tars."""
    Shards(workers=1).read(folder / "shards")


def ingest(folder: Path) -> None:
    """Ingest the images."""
    Ingest("tiny", str(folder / "shards"), Shards(workers=1), Split(), workers=1, directory=str(folder / "data")).run()


def measure(step: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """Return the seconds that a step takes in a process of its own, and the GB of memory that this took at most."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(step, folder, theirs))
    process.start()
    theirs.close()
    seconds, peak = ours.recv()
    process.join()
    return seconds, peak


def _run(step: Callable[[Path], None], folder: Path, told: Connection) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core
    start = time.perf_counter()
    step(folder)
    told.send((time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))


def main() -> None:
    """Measure each number of images, and print and keep what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="where the shards go; 3.5 GB per million")
    parser.add_argument("--result", type=Path, help="a JSON file for the numbers")
    arguments = parser.parse_args()
    rows, results = [], []
    for images in arguments.images:
        folder = Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            make_shards(folder / "shards", 0, images)
            steps = {"index": measure(index, folder), "ingest": measure(ingest, folder)}
            steps["nothing new"] = measure(ingest, folder)
            make_shards(folder / "shards", images, images // 100)
            steps["1 % more"] = measure(ingest, folder)
        finally:
            shutil.rmtree(folder)
        results.append({"images": images, **{name: list(step) for name, step in steps.items()}})
        for name, (seconds, peak) in steps.items():
            rows.append((f"{images:,}", name, f"{seconds:,.1f}", f"{1000 * seconds / images:.3f}", f"{peak:.2f}"))
            say("  ".join(rows[-1]))
    print_table("On one core", ("images", "step", "seconds", "s per 1,000", "peak GB"), rows)
    if arguments.result is not None:
        arguments.result.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
