"""Surfaces with faults of few pixels: sound, scratched or pitted. Made up with numpy; the same on each machine.

A surface is brushed, woven or cast, unevenly lit and grainy. A scratch is 1 to 2 px wide and 20 to 40 px long, a pit 3
to 5 px wide; both are lighter or darker than their surroundings by some of the surface's own noise. Sound surfaces have
dust and stains, as the others do. Faults lie away from the border, so that a crop of the center has them.

Legend: S side of the image in px.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from benchmarks.accuracy.sets.folders import Pixels, Sample

SIDE, MARGIN = 256, 48  # px
CLASS_NAMES = ("sound", "scratch", "pit")
COUNTS = {"train": 1_404, "validation": 300, "test": 600}
_CONTRAST = (2.0, 3.2)  # of a fault, in standard deviations of the grain around it

Floats = npt.NDArray[np.float64]


def samples() -> Iterator[Sample]:
    """Yield the images, as many of each class."""
    number = 0
    for split, count in COUNTS.items():
        for index in range(count):
            label = CLASS_NAMES[index % len(CLASS_NAMES)]
            yield Sample(split, label, f"{number:05}", draw_surface(label, np.random.default_rng([7, number])))
            number += 1


def draw_surface(label: str, generator: np.random.Generator) -> Pixels:
    """Draw one image, (S, S)."""
    surface = SURFACES[generator.integers(len(SURFACES))](generator)
    deviation = 0.07 * surface / surface.std()
    deviation += _light(generator) + _stains(generator) + generator.normal(0, 0.02, (SIDE, SIDE))
    for _ in range(generator.integers(4)):
        deviation += _dust(generator)
    sign = generator.choice([-1, 1])
    contrast = sign * generator.uniform(*_CONTRAST) * 0.075
    if label == "scratch":
        deviation += contrast * _scratch(generator)
    elif label == "pit":
        deviation += 1.25 * contrast * _pit(generator)
    level = generator.uniform(0.4, 0.6)
    image: np.ndarray = np.clip(np.round(255 * (level + deviation)), 0, 255).astype(np.uint8)
    return image


def grid() -> tuple[Floats, Floats]:
    """Return the rows and the columns of the pixels, each (S, S)."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    return rows, columns


def noise(generator: np.random.Generator, rows: float, columns: float) -> Floats:
    """Return noise (S, S) that is smooth over so many pixels downwards and to the right; standard deviation 1."""
    smooth: Floats = ndimage.gaussian_filter(generator.normal(size=(SIDE, SIDE)), (rows, columns), mode="wrap")
    noisy: Floats = smooth / smooth.std()
    return noisy


def turn(image: Floats, degrees: float) -> Floats:
    """Turn an image about its center; what comes in at the corners is its mirror image."""
    turned: Floats = ndimage.rotate(image, degrees, reshape=False, order=1, mode="mirror")
    return turned


def _brushed(generator: np.random.Generator) -> Floats:
    lines = noise(generator, 0.6, 30) + 0.6 * noise(generator, 1.5, 60)
    return turn(lines, generator.uniform(-15, 15))


def _woven(generator: np.random.Generator) -> Floats:
    rows, columns = grid()
    pitch = generator.uniform(7, 11)  # px from thread to thread
    rows, columns = rows + 1.2 * noise(generator, 12, 12), columns + 1.2 * noise(generator, 12, 12)
    over = np.cos(math.pi * rows / pitch) * np.cos(math.pi * columns / pitch)
    return turn(over + 0.5 * noise(generator, 0.8, 0.8), generator.uniform(-15, 15))


def _cast(generator: np.random.Generator) -> Floats:
    return noise(generator, 1.2, 1.2) + 0.7 * noise(generator, 3, 3)


SURFACES = (_brushed, _woven, _cast)


def _light(generator: np.random.Generator) -> Floats:
    """Return a gradient of brightness in any direction."""
    rows, columns = grid()
    angle = generator.uniform(0, 2 * math.pi)
    across = (rows * math.sin(angle) + columns * math.cos(angle)) / SIDE
    light: Floats = generator.uniform(0, 0.12) * (across - across.mean())
    return light


def _stains(generator: np.random.Generator) -> Floats:
    """Return soft stains, larger than any fault."""
    return 0.02 * np.clip(noise(generator, 18, 18), -2, 2)


def _dust(generator: np.random.Generator) -> Floats:
    """Return a speck of one pixel, which is no fault."""
    speck = np.zeros((SIDE, SIDE))
    row, column = generator.integers(0, SIDE, 2)
    speck[row, column] = generator.choice([-1, 1]) * generator.uniform(0.15, 0.3)
    return speck


def _scratch(generator: np.random.Generator) -> Floats:
    """Return a slightly bent line with soft edges, 0 to 1."""
    rows, columns = grid()
    row, column = generator.uniform(MARGIN, SIDE - MARGIN, 2)
    angle, length = generator.uniform(0, math.pi), generator.uniform(20, 40)
    bend, width = generator.uniform(-0.004, 0.004), generator.uniform(1, 2)
    along = (rows - row) * math.sin(angle) + (columns - column) * math.cos(angle)
    across = (rows - row) * math.cos(angle) - (columns - column) * math.sin(angle) - bend * along**2
    inside = np.clip(length / 2 - np.abs(along) + 0.5, 0, 1)
    line: Floats = inside * np.clip(width / 2 - np.abs(across) + 0.5, 0, 1)
    return line


def _pit(generator: np.random.Generator) -> Floats:
    """Return a spot with soft edges, 0 to 1, nearly round."""
    rows, columns = grid()
    row, column = generator.uniform(MARGIN, SIDE - MARGIN, 2)
    radius, stretch = generator.uniform(1.5, 2.5), generator.uniform(0.8, 1.25)
    distance = np.hypot((rows - row) * stretch, (columns - column) / stretch)
    spot: Floats = np.clip(radius - distance + 0.5, 0, 1)
    return spot
