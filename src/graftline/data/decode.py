"""Decode any image file to 8-bit RGB pixels, the same way at ingest, in training and in serving.

Needs Pillow and numpy only, as the predictor imports it in a small container.

Legend: H height, W width in pixels.
"""

import io
import warnings
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from graftline.data.signatures import HEAD_BYTES, describe

# Pillow's own limit, where it starts to warn: a quarter of a gigabyte at three bytes a pixel (PIL.Image).
MAX_PIXELS = 89_478_485

# Raster formats with a signature in their first bytes. A list, since Pillow also opens formats that start another
# program (EPS) or that have no signature, and so match anything (TGA). Pillow before 11.3 has no AVIF.
Image.init()
_NAMES = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")
FORMATS = tuple(name for name in _NAMES if name in Image.OPEN)

# Pillow warns of sizes, which we check ourselves, and of odd metadata, which does not change the pixels: only noise.
warnings.filterwarnings("ignore", module=r"PIL\.")

Flaw = Literal["missing", "empty", "unreadable", "broken", "too_large"]


class DecodeError(ValueError):
    """Raised for an image that cannot be decoded.

    Attributes:
        flaw: what is wrong, as one word.
        reason: what is wrong, for a person.
    """

    def __init__(self, flaw: Flaw, reason: str) -> None:
        super().__init__(reason)
        self.flaw: Flaw = flaw
        self.reason = reason


class Decoded(NamedTuple):
    """Hold a decoded image."""

    pixels: np.ndarray  # (H, W, 3) uint8, writable
    format: str  # what the content is, one of FORMATS, or MPO: a JPEG with more pictures behind the first


def decode_rgb(image: Path | str | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image to RGB.

    Gray is repeated over the channels, 16 bits are scaled to 8, transparency is laid on white, CMYK is converted, the
    first frame of an animation is taken, and the rotation that the camera noted in EXIF is applied.

    Args:
        image: a file's path, or its bytes.
        max_pixels: refuse images of more pixels, before any of them is decoded.

    Returns:
        (H, W, 3) uint8, writable.

    Raises:
        DecodeError: the file is missing, empty, no image, truncated or otherwise broken, or has too many pixels.
    """
    if isinstance(image, bytes):
        return decode(io.BytesIO(image), max_pixels).pixels
    try:
        with Path(image).open("rb") as file:
            return decode(file, max_pixels).pixels
    except FileNotFoundError as error:
        raise DecodeError("missing", "there is no such file") from error
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or str(error)) from error


def decode(file: BinaryIO, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode an open file as `decode_rgb` does, and tell its format too."""
    if max_pixels > MAX_PIXELS:  # the caller asks for more than Pillow's own guard lets through
        Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
    try:
        return _read_pixels(file, max_pixels)
    except DecodeError:
        raise
    except UnidentifiedImageError as error:
        if file.seek(0, io.SEEK_END) == 0:
            raise DecodeError("empty", "the file has no content") from error
        file.seek(0)
        raise DecodeError(*describe(file.read(HEAD_BYTES))) from error
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", f"more than {max_pixels:,} pixels") from error
    except Exception as error:  # Pillow's decoders raise almost anything on broken data: struct.error, KeyError, ...
        raise DecodeError("broken", str(error) or type(error).__name__) from error


def _read_pixels(file: BinaryIO, max_pixels: int) -> Decoded:
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels:  # known from the header alone
            raise DecodeError("too_large", f"{width:,} x {height:,} are more than {max_pixels:,} pixels")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return Decoded(_to_rgb(image), str(image.format))


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of a loaded image as (H, W, 3) uint8."""
    if image.mode.startswith(("I", "F")):  # 16 bits, also where Pillow holds them in 32, or floating point
        gray = _to_8_bits(np.asarray(image))  # (H, W)
        return np.repeat(gray[:, :, np.newaxis], 3, axis=2)  # (H, W, 3)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _to_8_bits(gray: np.ndarray) -> np.ndarray:
    """Scale (H, W) integers of 16 bits, or floating point within 0..1, to uint8."""
    low, high = gray.min(), gray.max()
    scaled: np.ndarray
    if np.issubdtype(gray.dtype, np.floating):
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise DecodeError("broken", "floating-point pixels outside 0..1 have no known scale")
        scaled = np.rint(gray * 255)
    else:
        if low < 0 or high > 65_535:
            raise DecodeError("broken", "integer pixels outside 16 bits have no known scale")
        scaled = (gray.astype(np.uint32) + 128) // 257  # to the nearest: 65,535 / 257 = 255
    return scaled.astype(np.uint8)
