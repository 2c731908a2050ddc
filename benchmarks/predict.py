"""Measure batch prediction: its rate beside a bare ONNX Runtime loop, and its memory as images become more.

    python benchmarks/predict.py BUNDLE                        the rate: 3 minutes of idle cores
    python benchmarks/predict.py BUNDLE --memory 20000 60000   peak memory at that many tiny images
    python benchmarks/predict.py BUNDLE --names 1000000        what the list of a million files takes

The images of the rate are JPEGs of 500 x 500 px with the detail of photographs. The bare loop decodes and prepares the
next batch in threads while ONNX Runtime runs one, writes nothing and looks after nothing. Both take turns in one
process; the table has the medians, and of the ratio that of the turns.
"""

import argparse
import io
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from graftline.bundle.batch import BatchJob
from graftline.bundle.engines import onnx_engine
from graftline.bundle.layout import LOGITS
from graftline.bundle.predictor import Predictor
from graftline.console import print_table
from graftline.data.decode import decode_rgb
from graftline.data.image_list import ImageLister
from graftline.execution import Execution

SIDE = 500  # px
BATCH = 32  # images, as the predictor's


def photos(folder: Path, number: int, side: int) -> None:
    """Write JPEGs of a photograph's detail: smooth color with grain."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in range(number):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side))
        grain = generator.normal(0, 12, (side, side, 3))
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{index:07}.jpg")


def copies(folder: Path, number: int) -> None:
    """Write many names for one small JPEG: links to it, a thousand in a folder."""
    folder.mkdir(parents=True)
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG")
    for start in range(0, number, 1000):
        place = folder / f"{start // 1000:05}"
        place.mkdir()
        original = place / "0000.jpg"
        original.write_bytes(file.getvalue())
        for index in range(1, min(1000, number - start)):
            os.link(original, place / f"{index:04}.jpg")


def bare(bundle: Path, files: Sequence[Path]) -> float:
    """Return the images a second of a loop that only decodes, prepares and runs ONNX Runtime."""
    execution = Execution()
    predictor, engine = Predictor.from_directory(bundle), onnx_engine(bundle, execution)

    def prepare(file: Path) -> np.ndarray:
        return predictor.preprocessing(decode_rgb(file, predictor.decoding))

    def batches() -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(execution.num_threads) as pool:
            starts = range(0, len(files), BATCH)
            tasks = ([pool.submit(prepare, file) for file in files[start : start + BATCH]] for start in starts)
            ahead = list(itertools.islice(tasks, 2))
            while ahead:
                yield np.stack([task.result() for task in ahead.pop(0)])
                ahead += itertools.islice(tasks, 1)

    start = time.perf_counter()
    for batch in batches():
        engine(batch, [LOGITS])
    return len(files) / (time.perf_counter() - start)


def job(bundle: Path, images: Path, out: Path) -> float:
    """Return the images a second of the job, from the list to the last part."""
    predictor = Predictor.from_directory(bundle)
    start = time.perf_counter()
    counts = BatchJob(predictor, ImageLister().read(images, out), out).run()
    return counts.images / (time.perf_counter() - start)


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """Return the images a second that ``work`` returns, and the processor seconds of all threads meanwhile."""
    before = time.process_time()
    rate = work()
    return rate, time.process_time() - before


def measure_rate(bundle: Path, number: int, turns: int) -> None:
    """Print rates and processor time, which other programs on the machine change less."""
    rows: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos(folder / "images", number, SIDE)
        files = sorted((folder / "images").iterdir())
        bare(bundle, files[: 4 * BATCH])  # warm
        for turn in range(turns):
            theirs, their_seconds = timed(partial(bare, bundle, files))
            ours, our_seconds = timed(partial(job, bundle, folder / "images", folder / f"out{turn}"))
            to_ms = 1000 / number
            rows.append((theirs, ours, ours / theirs, their_seconds * to_ms, our_seconds * to_ms))
    rows.append(tuple(statistics.median(column) for column in zip(*rows, strict=True)))
    told = [
        (name, f"{theirs:.1f}", f"{ours:.1f}", f"{ratio:.3f}", f"{their_ms:.1f}", f"{our_ms:.1f}")
        for name, (theirs, ours, ratio, their_ms, our_ms) in zip(
            [*(f"turn {turn + 1}" for turn in range(turns)), "median"], rows, strict=True
        )
    ]
    title = f"{number} JPEGs of {SIDE} x {SIDE}, {len(os.sched_getaffinity(0))} cores"
    columns = (
        "",
        "bare loop, a second",
        "make predict, a second",
        "ratio",
        "bare loop, CPU ms",
        "make predict, CPU ms",
    )
    print_table(title, columns, told)


def measure_memory(bundle: Path, numbers: Sequence[int]) -> None:
    """Print the peak memory of jobs, each in a process of its own."""
    rows = []
    for number in numbers:
        with tempfile.TemporaryDirectory() as name:
            copies(Path(name) / "images", number)
            command = [sys.executable, __file__, str(bundle), "--job", f"{name}/images", "--out", f"{name}/out"]
            rate, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        rows.append((f"{number:,}", f"{float(rate):.0f}", f"{float(peak):.1f}"))
    print_table("tiny images", ("images", "a second", "peak MB"), rows)


def measure_names(number: int) -> None:
    """Print what a list of files takes: seconds, bytes of memory and of disk for each."""
    rows = []
    for count in (1000, number):
        with tempfile.TemporaryDirectory() as name:
            copies(Path(name) / "images", count)
            command = [sys.executable, __file__, "-", "--list", f"{name}/images", "--out", f"{name}/out"]
            seconds, peak, size = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        rows.append((count, float(seconds), float(peak), int(size)))
    (few, _, before, _), (many, seconds, after, size) = rows
    told = (f"{many:,}", f"{seconds:.1f}", f"{(after - before) * 1e6 / (many - few):.1f}", f"{size / many:.0f}")
    print_table("the list", ("files", "seconds", "bytes of memory a file", "bytes of disk a file"), [told])


def peak_mb() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs="+")
    parser.add_argument("--names", type=int)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)  # a process of ours
    parser.add_argument("--list", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job is not None:
        print(job(asked.bundle, asked.job, asked.out), peak_mb())
    elif asked.list is not None:
        start = time.perf_counter()
        listed = ImageLister().read(asked.list, asked.out)
        seconds, size = time.perf_counter() - start, listed._file.tell()
        assert sum(1 for _ in listed) == listed.count
        print(seconds, peak_mb(), size)
    elif asked.memory is not None:
        measure_memory(asked.bundle, asked.memory)
    elif asked.names is not None:
        measure_names(asked.names)
    else:
        measure_rate(asked.bundle, asked.images, asked.turns)


if __name__ == "__main__":
    main()
