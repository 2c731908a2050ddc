"""Nine kinds of surface, told apart by the pattern of the whole image. Made up with numpy; the same on each machine."""

import math
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from benchmarks.accuracy.sets.folders import Pixels, Sample
from benchmarks.accuracy.sets.textures import SIDE, Floats, grid, noise, turn

COUNTS = {"train": 2_007, "validation": 450, "test": 900}


def samples() -> Iterator[Sample]:
    """Yield the images, as many of each class."""
    number = 0
    for split, count in COUNTS.items():
        for index in range(count):
            label = tuple(PATTERNS)[index % len(PATTERNS)]
            yield Sample(split, label, f"{number:05}", draw_pattern(label, np.random.default_rng([9, number])))
            number += 1


def draw_pattern(label: str, generator: np.random.Generator) -> Pixels:
    """Draw one image, (S, S): the pattern, turned a little, of any contrast, under noise and stains."""
    pattern = turn(PATTERNS[label](generator), generator.uniform(-12, 12))
    pattern = (pattern - pattern.mean()) / pattern.std()
    smooth = ndimage.gaussian_filter(pattern, generator.uniform(0, 1.5))
    deviation = generator.uniform(0.04, 0.10) * smooth + 0.05 * noise(generator, 20, 20)
    deviation += generator.uniform(0.03, 0.08) * generator.normal(size=(SIDE, SIDE))
    image: np.ndarray = np.clip(np.round(255 * (generator.uniform(0.35, 0.65) + deviation)), 0, 255).astype(np.uint8)
    return image


def _wave(position: Floats, pitch: float) -> Floats:
    wave: Floats = np.cos(2 * math.pi * position / pitch)
    return wave


def _bent(generator: np.random.Generator) -> tuple[Floats, Floats, float]:
    """Return rows and columns of a cloth that lies not quite flat, and the pitch of its threads in px."""
    rows, columns = grid()
    return (
        rows + 2 * noise(generator, 14, 14),
        columns + 2 * noise(generator, 14, 14),
        generator.uniform(7, 13),
    )


def _plain(generator: np.random.Generator) -> Floats:
    rows, columns, pitch = _bent(generator)
    return _wave(rows, 2 * pitch) * _wave(columns, 2 * pitch)


def _twill(generator: np.random.Generator) -> Floats:
    rows, columns, pitch = _bent(generator)
    return _wave(rows + columns, 2 * pitch) + 0.5 * _wave(rows, pitch)


def _satin(generator: np.random.Generator) -> Floats:
    rows, columns, pitch = _bent(generator)
    return _wave(2 * rows + columns, 2.5 * pitch) + 0.5 * _wave(rows, pitch)


def _ribbed(generator: np.random.Generator) -> Floats:
    rows, columns, pitch = _bent(generator)
    return _wave(rows, pitch) + 0.4 * _wave(columns, pitch / 2)


def _corded(generator: np.random.Generator) -> Floats:
    rows, columns, pitch = _bent(generator)
    return _wave(columns, 1.6 * pitch) + 0.4 * _wave(rows, pitch / 2)


def _brushed(generator: np.random.Generator) -> Floats:
    return noise(generator, 1, generator.uniform(8, 16))


def _rolled(generator: np.random.Generator) -> Floats:
    return noise(generator, generator.uniform(2, 3.5), generator.uniform(14, 28))


def _cast(generator: np.random.Generator) -> Floats:
    size = generator.uniform(1.2, 2.6)
    return noise(generator, size, size)


def _hammered(generator: np.random.Generator) -> Floats:
    size = generator.uniform(2.2, 4.5)
    return np.abs(noise(generator, size, size))


PATTERNS = {
    "plain": _plain,
    "twill": _twill,
    "satin": _satin,
    "ribbed": _ribbed,
    "corded": _corded,
    "brushed": _brushed,
    "rolled": _rolled,
    "cast": _cast,
    "hammered": _hammered,
}
