"""144 characters rendered from the fonts of Debian packages, many with accents; no font is in two splits.

Many classes with few images of each, where ``letters`` has few with many. A folder is called by its character's code
point, as ``o`` and ``O`` would be one folder on some disks. A package is a group, as in ``letters``.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from benchmarks.accuracy.sets.folders import Sample
from benchmarks.accuracy.sets.letters import PACKAGES, draw_letter, find_fonts

SIDE = 64  # px
SMALL = "\"'`^_|.,:;-~"  # signs that are not told apart without a line of text around them
CHARACTERS = "".join(
    chr(code) for code in (*range(0x21, 0x7F), *range(0xC0, 0x100)) if chr(code) not in SMALL + "\u00d7\u00f7"
)
GROUPS = {"train": 32, "validation": 12, "test": 24}  # packages
_BLANK = 20  # pixels of a mask, at most, where a font draws nothing


def samples() -> Iterator[Sample]:
    """Yield the images, gray, 64 x 64 px: one of each character from each package that has them all."""
    fonts = {package: [font for font in find_fonts(package) if _has_all(font)] for package in PACKAGES}
    whole = sorted(package for package, found in fonts.items() if found)
    packages = np.random.default_rng(144).permutation(whole).tolist()
    for split, count in GROUPS.items():
        for package in sorted(packages[:count]):
            yield from _of_package(package, fonts[package], split)
        packages = packages[count:]


def _of_package(package: str, fonts: list[Path], split: str) -> Iterator[Sample]:
    generator = np.random.default_rng([144, PACKAGES.index(package)])
    for character in CHARACTERS:
        font = fonts[generator.integers(len(fonts))]
        drawn = Image.fromarray(draw_letter(character, font, generator)).resize((SIDE, SIDE))
        yield Sample(split, f"u{ord(character):04x}", package, np.asarray(drawn))


def _has_all(file: Path) -> bool:
    """Tell whether a font draws each character, and nearly all of them differently."""
    font = ImageFont.truetype(file, 64, layout_engine=ImageFont.Layout.BASIC)
    missing = bytes(font.getmask("\uffff"))
    shapes = [bytes(font.getmask(character)) for character in CHARACTERS]
    drawn = all(len(shape) > _BLANK for shape in shapes) and missing not in shapes
    return drawn and len(set(shapes)) > len(CHARACTERS) - 2
