"""Capital letters rendered from the fonts of Debian packages; no font is in two splits.

A package is a group: it holds the fonts of one designer or foundry. Packages whose fonts are drawn after those of
another are left out, so that a font of the test has no twin in the training. Other releases of Debian and Pillow may
draw a few pixels otherwise: ``digest.txt`` beside a written set tells.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.accuracy.sets.folders import Pixels, Sample

FONTS = Path(__file__).parent / "fonts.txt"  # packages, one a line
PACKAGES = FONTS.read_text(encoding="utf-8").split()
GROUPS = {"train": 40, "validation": 14, "test": 34}  # packages
COPIES = {"train": 2, "validation": 1, "test": 1}  # of each letter, in any font of the package
SIDE, MARGIN = 128, 6  # px
_SLANTED = ("italic", "oblique")


def samples() -> Iterator[Sample]:
    """Yield the images, gray, 128 x 128 px."""
    packages = np.random.default_rng(0).permutation(PACKAGES).tolist()
    for split, count in GROUPS.items():
        for package in sorted(packages[:count]):
            yield from _of_package(package, split)
        packages = packages[count:]


def _of_package(package: str, split: str) -> Iterator[Sample]:
    generator = np.random.default_rng([26, PACKAGES.index(package)])
    fonts = find_fonts(package)
    for copy in range(COPIES[split]):
        for letter in ascii_uppercase:
            font = fonts[generator.integers(len(fonts))]
            yield Sample(split, letter, f"{package}-{letter}{copy}", draw_letter(letter, font, generator))


def find_fonts(package: str) -> list[Path]:
    """Return the files of a package's upright fonts that have 26 different capitals, ordered by name."""
    try:
        listing = subprocess.run(["dpkg-query", "--listfiles", package], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise SystemExit(
            "dpkg-query is not there, and the letters are drawn from fonts of Debian packages: write the set on Debian "
            'or Ubuntu, or name the other sets (make bench-accuracy sets="elpv digits")'
        ) from error
    files = [Path(line) for line in listing.stdout.splitlines() if line.endswith((".ttf", ".otf"))]
    fonts = [file for file in sorted(files, key=lambda file: file.name) if _is_upright(file)]
    if not fonts:
        raise SystemExit(f"{package} is not installed: xargs apt-get install --no-install-recommends < {FONTS}")
    return fonts


def _is_upright(file: Path) -> bool:
    font = ImageFont.truetype(file, 32, layout_engine=ImageFont.Layout.BASIC)
    shapes = {bytes(font.getmask(letter)) for letter in ascii_uppercase}
    is_slanted = any(word in (font.getname()[1] or "").lower() for word in _SLANTED)
    return not is_slanted and len(shapes) == len(ascii_uppercase) and all(map(len, shapes))


def draw_letter(letter: str, file: Path, generator: np.random.Generator) -> Pixels:
    """Draw one letter, (128, 128): 40 to 90 px high, anywhere, turned up to 8 degrees, in two gray tones."""
    font = ImageFont.truetype(file, 200, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(letter)
    mask = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), letter, fill=255, font=font)
    mask = mask.rotate(generator.uniform(-8, 8), Image.Resampling.BICUBIC, expand=True)
    height = generator.uniform(40, 90)
    width = min(mask.width * height / mask.height, SIDE - 2 * MARGIN)
    mask = mask.resize((max(2, round(width)), round(height)), Image.Resampling.LANCZOS)
    corner = [int(generator.integers(MARGIN, SIDE - MARGIN - length + 1)) for length in mask.size]
    paper, ink = generator.uniform(0, 255, 2)
    while abs(paper - ink) < 60:
        ink = generator.uniform(0, 255)
    image = Image.new("L", (SIDE, SIDE), round(paper))
    image.paste(round(ink), (corner[0], corner[1]), mask)
    return np.asarray(image)
