"""Metadata decides on no pixels: be it large, damaged or odd, the picture is the same, and upright."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from graftline.data.decode import DecodeError, decode_rgb

RGB = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
LARGE = 2_000_000  # bytes, twice what Pillow takes


def encode(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, form, **options)
    return buffer.getvalue()


def png_with(*chunks: tuple[bytes, bytes], last: bool = False) -> bytes:
    """A PNG with further chunks behind its header, or before its end."""
    png = encode("PNG")
    place = len(png) - 12 if last else 33
    extra = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return png[:place] + b"".join(extra) + png[place:]


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of (tag, type, count, four bytes) each, as they are."""
    packed = b"".join(
        struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0") for tag, kind, count, value in entries
    )
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + packed + bytes(4)


def jpeg_with(segment: bytes, marker: int = 0xE1) -> tuple[bytes, np.ndarray]:
    """A JPEG with a further segment, and its pixels without."""
    plain = encode("JPEG", quality=95)
    content = plain[:2] + struct.pack(">BBH", 0xFF, marker, len(segment) + 2) + segment + plain[2:]
    return content, decode_rgb(plain)


TURNED = (0x0112, 3, 1, struct.pack("<H", 6))  # a quarter to the right
PROFILE = (b"iCCP", b"icc\0\0" + zlib.compress(bytes(LARGE)))
ZTXT = (b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * LARGE))
ITXT = (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"b" * LARGE))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "chunks", [[PROFILE], [ZTXT], [ITXT], [(b"tEXt", b"a\0" + bytes(LARGE))] * 40, [(b"pHYs", b"?")]]
)
def test_a_png_may_have_large_and_damaged_metadata(chunks: list[tuple[bytes, bytes]], last: bool) -> None:
    np.testing.assert_array_equal(decode_rgb(png_with(*chunks, last=last)), RGB)


def test_a_png_of_large_metadata_stays_upright_and_transparent() -> None:
    content = png_with(ZTXT, (b"eXIf", exif(TURNED)), (b"tRNS", struct.pack(">3H", *RGB[3, 5])))
    expected = RGB.copy()
    expected[3, 5] = 255
    np.testing.assert_array_equal(decode_rgb(content), np.rot90(expected, -1))


@pytest.mark.parametrize(
    "entries",
    [
        [TURNED, (0x011A, 5, 1, struct.pack("<I", 9_999)), (0x829A, 10, 3, b"\1")],  # rationals that lie nowhere
        [TURNED, (0x0103, 3, 1, b"\xff\xff"), (0x9999, 99, 1, b"\0")],  # a type that does not exist
        [TURNED, (0x8769, 4, 1, struct.pack("<I", 4_000_000_000))],  # a directory far behind the end
        [TURNED, (0x013B, 12, 1, b"abcd"), (0x0132, 4, 2, b"1")],
    ],
)
def test_odd_exif_leaves_the_orientation(entries: list[tuple[int, int, int, bytes]]) -> None:
    content, pixels = jpeg_with(b"Exif\0\0" + exif(*entries))
    np.testing.assert_array_equal(decode_rgb(content), np.rot90(pixels, -1))


def test_exif_with_a_number_that_cannot_be_written_again() -> None:
    """Pillow reads -1 of a type without a sign, and then fails to write it back when it removes the orientation."""
    content, pixels = jpeg_with(b"Exif\0\0" + exif(TURNED, (0x0100, 9, 1, struct.pack("<i", -1))))
    np.testing.assert_array_equal(decode_rgb(content), np.rot90(pixels, -1))


@pytest.mark.parametrize(
    ("segment", "marker"),
    [
        (b"Exif\0\0", 0xE1),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", 0xE1),
        (b"Exif\0\0what is this", 0xE1),
        (b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation=\xff\xfe", 0xE1),
        (b"ICC_PROFILE\0\1\xff", 0xE2),
        (b"MPF\0MM\0*\0\0\0\x08\xff\xff", 0xE2),
        (b"Photoshop 3.0\0008BIM\x03\xed\0\0\0\0\0\x10", 0xED),
        (b"JFIF\0", 0xE0),
    ],
)
def test_damaged_metadata_of_a_jpeg_does_not_matter(segment: bytes, marker: int) -> None:
    content, pixels = jpeg_with(segment, marker)
    np.testing.assert_array_equal(decode_rgb(content), pixels)


def test_damaged_metadata_of_a_tiff_does_not_matter() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "TIFF", tiffinfo={0x0112: 6, 0x8769: 4_000_000_000, 700: b"<\xff"})
    np.testing.assert_array_equal(decode_rgb(buffer.getvalue()), np.rot90(RGB, -1))


def test_a_truncated_picture_stays_refused_whatever_its_metadata() -> None:
    for content in (png_with(ZTXT), jpeg_with(b"MPF\0MM\0*\0\0\0\x08\xff\xff", 0xE2)[0]):
        with pytest.raises(DecodeError):
            decode_rgb(content[:-200])
