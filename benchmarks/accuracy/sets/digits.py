"""scikit-learn's digits: handwritten, 8 x 8 px."""

from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_digits

from benchmarks.accuracy.sets.draw import draw_splits
from benchmarks.accuracy.sets.folders import Sample


def samples() -> Iterator[Sample]:
    """Yield the 1,797 images; 60 % training, 15 % validation, 25 % test, stratified."""
    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    splits = draw_splits(found.target, {"train": 0.6, "validation": 0.15, "test": 0.25})
    for index, label in enumerate(found.target):
        yield Sample(splits[index], str(label), f"{index:04}", pixels[index])
