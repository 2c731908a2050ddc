"""How time and memory of ingest grow with the number of images: `python benchmarks/ingest_scale.py 1000 10000 100000`.

Makes that many small JPEG photographs (64 x 64 pixels of noise, 10 classes) in a temporary folder, ingests them as a
folder twice, each time in a new process, and prints seconds and peak memory.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from graftline.console import console, print_table
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split


def make_images(folder: Path, number: int) -> None:
    """Write ``number`` different images into ten class folders."""
    generator = np.random.default_rng(0)
    for label in range(10):
        (folder / f"class{label}").mkdir(parents=True)
    for index in range(number):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((64, 64)).save(folder / f"class{index % 10}" / f"{index:07}.jpg")


def ingest(images: str, versions: str) -> tuple[float, float]:
    """Ingest a folder; return seconds, and the process's peak memory in MB."""
    console.quiet = True
    start = time.perf_counter()
    Ingest(name="scale", path=images, source=Folder(), split=Split(), directory=versions).run()
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # from KB, on Linux


def main(numbers: list[int]) -> None:
    """Print a row per number of images."""
    rows = []
    for number in numbers:
        with (
            tempfile.TemporaryDirectory() as folder,
            multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
        ):
            make_images(Path(folder) / "images", number)
            first, again = (pool.apply(ingest, (f"{folder}/images", f"{folder}/versions")) for _ in range(2))
        rows.append((f"{number:,}", f"{first[0]:.1f}", f"{first[1]:.0f}", f"{again[0]:.1f}", f"{again[1]:.0f}"))
    print_table("ingest", ("images", "seconds", "peak MB", "seconds again", "peak MB again"), rows)


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]] or [1_000, 10_000, 100_000])
