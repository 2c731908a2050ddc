"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) from the Debian package dataset-fashion-mnist, MIT license."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.accuracy.sets.draw import draw_some, draw_splits
from benchmarks.accuracy.sets.folders import Pixels, Sample

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_VALIDATION = 1 / 6  # of the images that are not for the test


def samples(count: int) -> Iterator[Sample]:
    """Yield ``count`` of the 60,000 training images, one sixth of them for validation, and all 10,000 for the test."""
    pixels, labels = read_part("train")
    rows = draw_some(labels, count)
    splits = draw_splits(labels[rows], {"train": 1 - _VALIDATION, "validation": _VALIDATION})
    for row, split in zip(rows, splits, strict=True):
        yield Sample(split, CLASS_NAMES[labels[row]], f"train{row:05}", pixels[row])
    pixels, labels = read_part("t10k")
    for row, label in enumerate(labels):
        yield Sample("test", CLASS_NAMES[label], f"test{row:05}", pixels[row])


def read_part(part: str) -> tuple[Pixels, npt.NDArray[np.uint8]]:
    """Return images (N, 28, 28) and labels (N,)."""
    try:
        images = gzip.decompress((FOLDER / f"{part}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((FOLDER / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    except FileNotFoundError as error:
        raise SystemExit(f"{FOLDER} is not there: apt-get install dataset-fashion-mnist") from error
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)
