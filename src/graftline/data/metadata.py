"""Take metadata out of image files: where it is damaged or too large for Pillow, the pixels are sound all the same."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from PIL import ExifTags, Image

ORIENTATION = ExifTags.Base.Orientation
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_EXIF = b"Exif\0\0"
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"  # the segment as it is without a resolution and a thumbnail
_PIXELS_OF_PNG = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_APP0, _APP1, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE  # markers of JPEG segments
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the value of the EXIF tag (EXIF 2.32, section 4.6.4)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image; 1, which is upright, where its metadata cannot be read.

    Unlike ``ImageOps.exif_transpose`` this writes no metadata again, which fails for numbers that have no place there.
    """
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a parser of what may be anything
        return 1
    return found if found in _TURNS else 1


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image of an EXIF orientation upright."""
    method = _TURNS.get(orientation)
    return image if method is None else image.transpose(method)


def without_metadata(file: BinaryIO) -> BinaryIO | None:
    """Return a PNG or JPEG with its pixels and its orientation alone; None for other formats.

    Truncated files stay truncated.
    """
    file.seek(0)
    content = file.read()
    if content.startswith(_PNG):
        return io.BytesIO(b"".join(_bare_png(content)))
    if content.startswith(_JPEG):
        return io.BytesIO(b"".join(_bare_jpeg(content)))
    return None


def _bare_png(content: bytes) -> Iterator[bytes]:
    yield _PNG
    place = len(_PNG)
    while place + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        end = place + 12 + size  # length, kind and checksum take four bytes each
        if kind in _PIXELS_OF_PNG:
            yield content[place:end]
        elif kind == b"eXIf":
            exif = _orientation_only(content[place + 8 : end - 4])
            yield struct.pack(">I4s", len(exif), kind) + exif + struct.pack(">I", zlib.crc32(kind + exif))
        place = end


def _bare_jpeg(content: bytes) -> Iterator[bytes]:
    yield _JPEG
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker, size = struct.unpack_from(">xBH", content, place)
        if marker == 0xFF:  # any number of these may come before a marker
            place += 1
            continue
        if marker == 0xDA:  # start of scan: the rest is pixels
            break
        segment = content[place : place + 2 + size]
        if marker == _APP1 and segment[4:].startswith(_EXIF):
            exif = _EXIF + _orientation_only(segment[4:])
            yield struct.pack(">BBH", 0xFF, _APP1, len(exif) + 2) + exif
        elif marker == _APP0:
            yield _JFIF
        elif marker == _APP14 or not (_APP0 <= marker <= _APP15 or marker == _COMMENT):
            yield segment
        place += 2 + size
    yield content[place:]


def _orientation_only(exif: bytes) -> bytes:
    """Return EXIF that holds the orientation of ``exif`` and no more."""
    image, kept = Image.new("L", (1, 1)), Image.Exif()
    image.info["exif"] = exif
    kept[ORIENTATION] = orientation(image)
    return kept.tobytes().removeprefix(_EXIF)
