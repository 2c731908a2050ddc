"""A small dataset version of colored squares, and a classifier that can tell most of them apart."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from manifest import manifest
from PIL import Image

from graftline.bundle.decision import MOST_PROBABLE
from graftline.data.decode import decode_rgb
from graftline.data.version import DatasetVersion
from graftline.data.version_writing import write_version
from graftline.files import sha256_file

CLASS_NAMES = ("blue", "<script>alert(1)</script>", "red $5 & $6")
COLORS = np.array([[60, 80, 190], [60, 170, 80], [190, 60, 70]], dtype=np.float64)  # (K, 3)


class NearestColor:
    """A classifier: the nearer an image's mean color to a class's color, the more probable the class."""

    def __init__(self, class_names: tuple[str, ...] = CLASS_NAMES) -> None:
        self.class_names = class_names
        self.digest = "nearest color"
        self.decision = MOST_PROBABLE

    def logits(
        self, images: Iterable[str], batch_size: int, on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        means, paths = [], list(images)
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            means += [decode_rgb(image).mean(axis=(0, 1)) for image in batch]
            if on_progress is not None:
                on_progress(len(batch))
        distances = np.linalg.norm(np.stack(means)[:, None] - COLORS, axis=2)  # (N, K)
        logits: np.ndarray = (-0.03 * distances).astype(np.float32)
        return logits


@pytest.fixture(scope="session")
def classifier() -> NearestColor:
    return NearestColor()


@pytest.fixture(scope="session")
def cat_classifier() -> NearestColor:
    """One that was trained for other classes."""
    return NearestColor(("cat", "dog", "cow"))


@pytest.fixture(scope="session")
def version(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """60 test images, 20 per class, some with so much of another color that they are mistaken for it."""
    folder = tmp_path_factory.mktemp("squares")
    generator = np.random.default_rng(0)
    paths, splits, weights = [], [], []
    for number in range(66):
        label = number % 3
        other = COLORS[(label + 1) % 3]
        share = generator.uniform(0, 0.65)
        color = (1 - share) * COLORS[label] + share * other
        pixels = np.clip(color + generator.normal(0, 12, (24, 30, 3)), 0, 255).astype(np.uint8)
        path = folder / f"{number:02}.png"
        Image.fromarray(pixels).save(path)
        paths.append(path)
        splits.append("test" if number < 60 else ("train", "validation")[number % 2])
        weights.append(1.0 if share < 0.4 else 1 / 3)
    table = manifest(
        [CLASS_NAMES[number % 3] for number in range(66)],
        splits,
        path=[str(path) for path in paths],
        weight=weights,
        sha256=[sha256_file(path) for path in paths],
        width=30,
        height=24,
    )
    return write_version(tmp_path_factory.mktemp("versions"), "squares", table, CLASS_NAMES)[0]
