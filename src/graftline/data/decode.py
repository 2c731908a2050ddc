"""Decode any image file to 8-bit RGB pixels, the same way at ingest, in training and in serving.

Needs Pillow and numpy only, as the predictor imports it in a small container; `readers` has what needs more.

Legend: H height, W width in pixels.
"""

import io
import logging
import math
import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from graftline.data.decoding import (
    MAX_PIXELS,
    NO_FILE,
    PLAIN,
    DecodeError,
    DecodeSettings,
    Decoding,
    Flaw,
    Look,
    out_of_reach,
    to_8_bits,
    to_nothing,
)
from graftline.data.image_bytes import open_image
from graftline.data.metadata import orientation, turn, without_metadata
from graftline.data.readers import (
    TiffHeader,
    check_size,
    check_tiles,
    dicom_size,
    is_dicom,
    is_heif,
    open_heif,
    read_dicom,
    read_heif,
    read_tiff,
    read_tiff_header,
    tile_size,
)
from graftline.data.signatures import HEAD_BYTES, describe

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "PLAIN",
    "DecodeError",
    "DecodeSettings",
    "Decoded",
    "Decoding",
    "Flaw",
    "count_pixels",
    "decode",
    "decode_rgb",
]

# Raster formats with a signature in their first bytes. A list, since Pillow also opens formats that start another
# program (EPS) or that have no signature, and so match anything (TGA). Pillow before 11.3 has no AVIF.
Image.init()
_NAMES = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")
FORMATS = tuple(name for name in _NAMES if name in Image.OPEN)
_STRIP_PIXELS = 1_000_000  # that are converted at a time
_LOOKED_AT_SIDE = 256  # rows and columns at most that are looked at in color of 16 bits

# Pillow warns of sizes, which we check ourselves, and of odd metadata, which does not change the pixels: only noise.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # of what it cannot read, which we say ourselves


class Decoded(NamedTuple):
    """Hold a decoded image."""

    pixels: np.ndarray  # (H, W, 3) uint8, writable
    format: str  # what the content is: one of FORMATS, MPO (a JPEG with more pictures behind the first), DICOM or HEIF
    extra: str = ""  # the extra of graftline that has read it; empty for none


def decode_rgb(image: Path | str | bytes, decoding: Decoding = PLAIN) -> np.ndarray:
    """Decode an image to RGB.

    Gray is repeated over the channels, more than 8 bits are scaled to 8, transparency is laid on white, CMYK is
    converted, the first frame of an animation is taken, and the rotation that the camera noted in EXIF is applied. No
    other metadata matters, be it damaged or large.

    Args:
        image: a file's path or another reference (`graftline.data.references`), or its bytes.
        decoding: how many pixels it may have, and which numbers become which gray levels.

    Returns:
        (H, W, 3) uint8, writable.

    Raises:
        DecodeError: the file is missing, empty, no image, truncated or otherwise broken, has too many pixels, or holds
            numbers of which nobody says how they make a picture.
    """
    if isinstance(image, bytes):
        return decode(io.BytesIO(image), decoding).pixels
    try:
        with open_image(image) as file:
            return decode(file, decoding).pixels
    except FileNotFoundError as error:
        raise DecodeError("missing", NO_FILE) from error
    except OSError as error:
        raise DecodeError("unreadable", out_of_reach(error) or error.strerror or str(error)) from error


def decode(
    file: BinaryIO,
    decoding: Decoding = PLAIN,
    look: Look = to_nothing,
) -> Decoded:
    """Decode an open file as `decode_rgb` does, and tell what it was.

    Args:
        file: at its start.
        decoding: as for `decode_rgb`.
        look: is given the numbers of a file of more than 8 bits, before they are scaled; of 16-bit color that nothing
            is asked of, some in each channel, roughly.
    """
    if decoding.max_pixels > MAX_PIXELS:  # the caller asks for more than Pillow's own guard lets through
        Image.MAX_IMAGE_PIXELS = max(decoding.max_pixels, Image.MAX_IMAGE_PIXELS or 0)
    try:
        return _decode(file, decoding, look)
    except DecodeError:
        raise
    except UnidentifiedImageError as error:
        if file.seek(0, io.SEEK_END) == 0:
            raise DecodeError("empty", "the file has no content") from error
        if (bare := _decode_bare(file, decoding, look)) is not None:
            return bare
        file.seek(0)
        raise DecodeError(*describe(file.read(HEAD_BYTES))) from error
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", f"more than {decoding.max_pixels:,} pixels") from error
    except Exception as error:  # Pillow's decoders raise almost anything on broken data: struct.error, KeyError, ...
        if (reason := out_of_reach(error)) is not None:
            raise DecodeError("unreadable", reason) from error
        if (bare := _decode_bare(file, decoding, look)) is not None:
            return bare
        raise DecodeError("broken", str(error) or type(error).__name__) from error


def _decode_bare(file: BinaryIO, decoding: Decoding, look: Look) -> Decoded | None:
    """Decode a file once more without its metadata; None if they were not what was wrong."""
    bare = without_metadata(file)
    try:
        return None if bare is None else _decode_with_pillow(bare, decoding, look)
    except Exception:  # the first error tells more
        return None


def _decode(file: BinaryIO, decoding: Decoding, look: Look) -> Decoded:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if is_dicom(head):
        return Decoded(_to_rgb(Image.fromarray(read_dicom(file, decoding, look))), "DICOM", extra="dicom")
    if is_heif(head):
        return Decoded(_to_rgb(read_heif(file, decoding)), "HEIF", extra="heif")
    check_tiles(file, decoding)
    header = read_tiff_header(file)
    if header is not None and header.is_read_by_bands(decoding):
        return _decode_bands(file, header, decoding, look)
    try:
        return _decode_with_pillow(file, decoding, look)
    except UnidentifiedImageError as error:
        if header is None or not header.is_gray_or_rgb:
            raise
        if header.has_bands or decoding.settings.range is None:
            raise DecodeError("no_scale", f"{header}") from error
        return _decode_bands(file, header, decoding, look)


def _decode_bands(file: BinaryIO, header: TiffHeader, decoding: Decoding, look: Look) -> Decoded:
    check_size(header.width, header.height, decoding)
    numbers = read_tiff(file, header, decoding)
    look(numbers)
    image = Image.fromarray(to_8_bits(numbers, decoding.settings.range))
    return Decoded(_to_rgb(turn(image, header.orientation)), "TIFF", extra="tiff")


def _decode_with_pillow(file: BinaryIO, decoding: Decoding, look: Look) -> Decoded:
    with Image.open(file, formats=FORMATS) as image:
        check_size(*image.size, decoding)
        kind, limits = str(image.format), decoding.settings.range
        if decoding.settings.jpeg_side_px is not None and isinstance(image, JpegImageFile):
            image.draft(None, (decoding.settings.jpeg_side_px,) * 2)
        layout = str(image.tile)  # of the stored pixels; it is empty once they are loaded
        turned = None
        if isinstance(image, TiffImageFile):
            turned = orientation(image)
            image.load_end = lambda: None  # type: ignore[method-assign]  # it reads metadata, and fails where those do
        image.load()
        numbers = None
        if image.mode.startswith(("I", "F")):  # 16 bits, also where Pillow holds them in 32, or floating point
            numbers = np.asarray(image)  # (H, W)
        elif limits is not None and ("'RGB;16B'" in layout or "'RGBA;16B'" in layout):  # a PNG
            numbers = _deep_png(file, image)  # (H, W, 3)
        shown: Image.Image = image
        if numbers is not None:
            look(numbers)
            shown = Image.fromarray(to_8_bits(numbers, limits))
            if image.mode == "RGBA":
                shown.putalpha(image.getchannel("A"))
        elif limits is not None and "LA;16" in layout:
            raise DecodeError("no_scale", "gray of 16 bits with transparency: save it without, or leave out the range")
        elif ";16" in layout:
            down, across = (1 + side // _LOOKED_AT_SIDE for side in (image.height, image.width))
            look(np.asarray(image)[::down, ::across, :3] * np.uint16(257))  # all of it would take twice the room
        return Decoded(_to_rgb(turn(shown, turned or orientation(image))), kind)


def _deep_png(file: BinaryIO, high: Image.Image) -> np.ndarray:
    """Return the colors of a PNG of 16 bits, (H, W, 3) uint16, without transparency.

    Pillow keeps their high bytes. Told that the bytes come in the other order, it keeps the low ones.
    """
    with Image.open(file, formats=("PNG",)) as low:
        low.tile = [tile._replace(args=str(tile.args).replace("16B", "16L")) for tile in low.tile]
        numbers: np.ndarray = np.asarray(high)[:, :, :3] * np.uint16(256) + np.asarray(low)[:, :, :3]
        return numbers


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of a loaded image of at most 8 bits as (H, W, 3) uint8.

    Strip by strip: whole, each step would take four bytes for every pixel.
    """
    width, height = image.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        if image.has_transparency_data:
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip.convert("RGBA"))
        pixels[top : top + rows] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return pixels


def count_pixels(image: bytes) -> int | None:
    """Return how many pixels are decoded of a file by its header, three bands for each; None where it does not tell.

    Those of a TIFF's tile count where it is larger than the image.
    """
    file, head = io.BytesIO(image), image[:HEAD_BYTES]
    try:
        if is_dicom(head):
            return math.prod(dicom_size(file))
        if is_heif(head):
            return int(math.prod(open_heif(file).size))
        tile = math.prod(tile_size(file))
        if (header := read_tiff_header(file)) is not None:
            return max(tile, header.width * header.height) * math.ceil(header.bands / 3)
        with Image.open(file, formats=FORMATS) as found:
            return max(tile, math.prod(found.size))
    except Exception:  # whoever decodes it says what is wrong
        return None
