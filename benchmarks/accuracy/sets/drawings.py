"""Pictures in folders by subject, from four Debian packages: many makers, styles and sizes, few of some classes.

openclipart-png: clip art, in the public domain. tuxpaint-stamps-default: drawings and photographs of the painting
program Tux Paint, GPL and public domain. oxygen-icon-theme: icons of a desktop, LGPL. ufoai-textures: surfaces of the
game UFO: Alien Invasion, many of them photographs, under the free licenses that the package lists.
"""

import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from benchmarks.accuracy.sets.draw import draw_splits
from benchmarks.accuracy.sets.folders import Pixels, Sample

CLIPART = Path("/usr/share/openclipart/png")
STAMPS = Path("/usr/share/tuxpaint/stamps")
ICONS = Path("/usr/share/icons/oxygen/base/128x128")
SURFACES = Path("/usr/share/games/ufoai/base/0textures.pk3")
_SHARES = {"train": 0.56, "validation": 0.14, "test": 0.3}
_SIDE_PX = 400  # the longer side at most
_FEWEST_PX = 16  # the shorter side at least: smaller ones are bullets and lines
_MAX_PIXELS = 100_000_000  # a few drawings are posters
_SURFACE = re.compile(r"textures/tex_([a-z]+)/.*?(_nm|_n|_gm|_sm|_rm)?\.(?:jpg|png|tga)")
"""A subject, and what ends the name of a map of relief, gloss or glow, which is no picture."""

File: TypeAlias = Path | zipfile.Path


def clipart() -> Iterator[Sample]:
    """Yield at most 300 drawings of each subject that has 39 or more: people, food, shapes, buildings and so on."""
    files = _in_folders(CLIPART, "openclipart-png", without=("special", "unsorted"))  # both have no subject
    return _samples(files, at_least=39, at_most=300)


def stamps() -> Iterator[Sample]:
    """Yield the stamps of each subject that has 12 or more: animals, vehicles, plants and so on."""
    return _samples(_in_folders(STAMPS, "tuxpaint-stamps-default"), at_least=12, at_most=300)


def icons() -> Iterator[Sample]:
    """Yield at most 300 icons of each purpose that has 12 or more: actions, places, kinds of files and so on."""
    return _samples(_in_folders(ICONS, "oxygen-icon-theme"), at_least=12, at_most=300)


def surfaces() -> Iterator[Sample]:
    """Yield at most 300 surfaces of each subject that has 12 or more: doors, furniture, nature, streets and so on."""
    if not SURFACES.is_file():
        raise SystemExit(f"{SURFACES} is not there: apt-get install ufoai-textures")
    files: dict[str, list[File]] = {}
    with zipfile.ZipFile(SURFACES) as archive:
        for name in sorted(archive.namelist()):
            found = _SURFACE.fullmatch(name.lower())
            if found and not found[2] and found[1] not in ("anim", "common", "ctp", "mattn", "misc", "trak"):
                files.setdefault(found[1], []).append(zipfile.Path(archive, name))
        yield from _samples(files, at_least=12, at_most=300)


def _in_folders(folder: Path, package: str, without: Collection[str] = ()) -> dict[str, Sequence[File]]:
    """Return the files of each subfolder."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there: apt-get install {package}")
    subjects = sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in without)
    return {subject.name: sorted(subject.rglob("*.png")) for subject in subjects}


def _samples(files: Mapping[str, Sequence[File]], *, at_least: int, at_most: int) -> Iterator[Sample]:
    """Yield images of the subjects, each content once, on white."""
    generator = np.random.default_rng(0)
    seen: set[bytes] = set()
    for subject in sorted(files):
        kept: list[Pixels] = []
        for index in generator.permutation(len(files[subject])):
            pixels = _on_white(files[subject][index]) if len(kept) < at_most else None
            if pixels is not None and pixels.tobytes() not in seen:
                seen.add(pixels.tobytes())
                kept.append(pixels)
        if len(kept) >= at_least:
            splits = draw_splits(np.zeros(len(kept), dtype=int), _SHARES)
            for number, (pixels, split) in enumerate(zip(kept, splits, strict=True)):
                yield Sample(split, subject, f"{subject}{number:03}", pixels)


def _on_white(file: File) -> Pixels | None:
    """Return an image (H, W, 3) on white; nothing for one that can't be read, is a poster or is tiny."""
    try:
        with file.open("rb") as stream, Image.open(stream) as image:
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
