"""Drawings in folders by subject, from two Debian packages: many painters, styles and sizes, few of some classes.

openclipart-png: clip art, in the public domain. tuxpaint-stamps-default: drawings and photographs of the painting
program Tux Paint, GPL and public domain. No default of graftline was decided by them.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from benchmarks.accuracy.sets.draw import draw_splits
from benchmarks.accuracy.sets.folders import Pixels, Sample

CLIPART = Path("/usr/share/openclipart/png")
STAMPS = Path("/usr/share/tuxpaint/stamps")
_CATCH_ALL = ("special", "unsorted")  # folders without a subject
_SHARES = {"train": 0.56, "validation": 0.14, "test": 0.3}
_SIDE_PX = 400  # the longer side at most
_FEWEST_PX = 16  # the shorter side at least: smaller ones are bullets and lines
_MAX_PIXELS = 100_000_000  # a few drawings are posters


def clipart() -> Iterator[Sample]:
    """Yield at most 300 drawings of each subject that has 39 or more: people, food, shapes, buildings and so on."""
    return _samples(CLIPART, "openclipart-png", at_least=39, at_most=300, without=_CATCH_ALL)


def stamps() -> Iterator[Sample]:
    """Yield the stamps of each subject that has 12 or more: animals, vehicles, plants and so on."""
    return _samples(STAMPS, "tuxpaint-stamps-default", at_least=12, at_most=300, without=())


def _samples(folder: Path, package: str, *, at_least: int, at_most: int, without: Collection[str]) -> Iterator[Sample]:
    """Yield images of the subfolders of ``folder``, each content once, on white."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there: apt-get install {package}")
    generator = np.random.default_rng(0)
    seen: set[bytes] = set()
    for subject in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in without):
        kept: list[Pixels] = []
        for file in generator.permutation(sorted(subject.rglob("*.png"))):
            pixels = _on_white(file) if len(kept) < at_most else None
            if pixels is not None and pixels.tobytes() not in seen:
                seen.add(pixels.tobytes())
                kept.append(pixels)
        if len(kept) >= at_least:
            splits = draw_splits(np.zeros(len(kept), dtype=int), _SHARES)
            for number, (pixels, split) in enumerate(zip(kept, splits, strict=True)):
                yield Sample(split, subject.name, f"{subject.name}{number:03}", pixels)


def _on_white(file: Path) -> Pixels | None:
    """Return an image (H, W, 3) on white; nothing for one that can't be read, is a poster or is tiny."""
    try:
        with Image.open(file) as image:
            if image.width * image.height > _MAX_PIXELS:
                return None
            drawing = image.convert("RGBA")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    drawing.thumbnail((_SIDE_PX, _SIDE_PX))
    if min(drawing.size) < _FEWEST_PX:
        return None
    white = Image.new("RGBA", drawing.size, "white")
    return np.asarray(Image.alpha_composite(white, drawing).convert("RGB"))
