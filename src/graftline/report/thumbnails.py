"""Small versions of images, as text that a page holds."""

import base64
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from graftline.data.decode import decode_rgb
from graftline.data.decoding import Decoding
from graftline.data.file_names import to_path
from graftline.execution import available_cores

QUALITY = 78  # of 100: at this size nothing is seen of the loss; 144 px take 3 to 5 kB
SHARP_SIDE = 64  # px; images up to this size are shown larger, pixel by pixel, and kept as they are


@dataclass(frozen=True)
class Thumbnail:
    """A small image.

    Attributes:
        source: a data URI.
        width: in px.
        height: in px.
        is_tiny: whether the image itself is so small that its pixels are to be seen.
    """

    source: str
    width: int
    height: int
    is_tiny: bool = False


def thumbnail(pixels: np.ndarray, side: int) -> Thumbnail:
    """Return an image (H, W, 3) uint8 whose longer side is at most ``side`` px."""
    picture = Image.fromarray(pixels)
    is_tiny = max(picture.size) <= SHARP_SIDE
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Thumbnail(_encode(picture, lossless=is_tiny), picture.width, picture.height, is_tiny)


def thumbnails(paths: Sequence[str], decoding: Decoding, side: int) -> Iterator[Thumbnail]:
    """Yield a thumbnail of each image file; they are read in parallel.

    Raises:
        graftline.data.decode.DecodeError: an image has vanished since it was classified.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        yield from pool.map(lambda path: thumbnail(decode_rgb(to_path(path), decoding), side), paths)


def picture(file: Path | BinaryIO, most: int | None = None) -> Thumbnail:
    """Return a picture that was drawn or kept, in its own size or as wide as ``most`` px."""
    with Image.open(file) as drawn:
        image = drawn.convert("RGB")
    if most is not None:
        image.thumbnail((most, image.height), Image.Resampling.LANCZOS)
    return Thumbnail(_encode(image), image.width, image.height)


def _encode(image: Image.Image, *, lossless: bool = False) -> str:
    content = io.BytesIO()
    image.save(content, "WEBP", quality=QUALITY, lossless=lossless, method=4)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
