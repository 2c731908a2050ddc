"""One small made-up image in every format and mode that we read: where versions of Pillow come to differ.

Legend: H height, W width in pixels.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from graftline.data.decode import FORMATS

HEIGHT, WIDTH = 52, 76  # no multiples of 8 or 16: codecs work on blocks
ORIENTATION = 0x0112  # EXIF tag


def make_odd_images() -> dict[str, bytes]:
    """Return encoded images by file name. A format that this Pillow was built without is left out."""
    return {name: content for kind, name, content in _all() if kind in FORMATS}


def _all() -> Iterator[tuple[str, str, bytes]]:
    """Yield format, file name and content."""
    rgb = _picture()
    gray = rgb.convert("L")
    levels = np.asarray(gray, dtype=np.float32) / 255  # (H, W)
    deep = np.minimum(np.rint(65_535 * levels) + 100, 65_535)  # rounded and cut to 8 bits it differs
    alpha = gray.point(lambda level: 255 - level)
    rgba = Image.merge("RGBA", (*rgb.split(), alpha))
    palette = rgb.quantize(32)
    exif = Image.Exif()

    yield from _encode("PNG", "color.png", rgb)
    yield from _encode("JPEG", "color.jpg", rgb, quality=90)
    yield from _encode("BMP", "color.bmp", rgb)
    yield from _encode("PPM", "color.ppm", rgb)
    yield from _encode("TIFF", "color.tif", rgb)
    yield from _encode("WEBP", "color.webp", rgb, quality=90)
    yield from _encode("AVIF", "color.avif", rgb, quality=90)
    yield from _encode("JPEG2000", "color.jp2", rgb)
    yield from _encode("JPEG", "several.mpo", rgb, save_as="MPO", save_all=True, append_images=[gray.convert("RGB")])
    yield "PNG", "color_16_bit.png", _png_16_bit(np.asarray(rgb))
    yield from _encode("PNG", "gray.png", gray)
    yield from _encode("JPEG", "gray.jpg", gray, quality=90)
    yield from _encode("PNG", "gray_16_bit.png", Image.fromarray(deep.astype(np.uint16)))
    yield from _encode("TIFF", "gray_16_bit.tif", Image.fromarray(deep.astype(np.uint16)))
    yield from _encode("TIFF", "gray_16_bit_big_endian.tif", Image.fromarray(deep.astype(">u2")))
    yield from _encode("TIFF", "gray_32_bit.tif", Image.fromarray(deep.astype(np.int32)))
    yield from _encode("TIFF", "gray_float.tif", Image.fromarray(levels))
    yield from _encode("PNG", "one_bit.png", gray.convert("1"))
    yield from _encode("PNG", "gray_alpha.png", Image.merge("LA", (gray, alpha)))
    yield from _encode("PNG", "alpha.png", rgba)
    yield from _encode("WEBP", "alpha.webp", rgba, lossless=True)
    yield from _encode("PNG", "color_key.png", rgb, transparency=rgb.getpixel((0, 0)))
    yield from _encode("PNG", "palette.png", palette)
    yield from _encode("PNG", "palette_transparent.png", palette, transparency=3)
    yield from _encode("GIF", "animated.gif", palette, save_all=True, append_images=[palette.rotate(180)])
    yield from _encode("JPEG", "cmyk.jpg", rgb.convert("CMYK"), quality=90)
    yield from _encode("TIFF", "cmyk.tif", rgb.convert("CMYK"))
    for orientation in range(1, 9):
        exif[ORIENTATION] = orientation
        yield from _encode("JPEG", f"orientation_{orientation}.jpg", rgb, quality=90, exif=exif)


def _picture() -> Image.Image:
    """Return a picture without symmetry: ramps of color, a disk, and stripes that become finer."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    ramps = np.stack([30 + 2.2 * x, 40 + 3.5 * y, 220 - x - 2 * y], axis=-1)  # (H, W, 3)
    ramps[(x - 20) ** 2 + (y - 16) ** 2 < 120] = (235, 60, 30)
    ramps[(y > 34) & (x * x // 160 % 2 == 0)] = (15, 20, 60)
    return Image.fromarray(ramps.clip(0, 255).astype(np.uint8))


def _encode(
    kind: str, name: str, image: Image.Image, save_as: str | None = None, **options: Any
) -> Iterator[tuple[str, str, bytes]]:
    if kind in FORMATS:  # Pillow cannot write what it was built without
        content = io.BytesIO()
        image.save(content, save_as or kind, **options)
        yield kind, name, content.getvalue()


def _png_16_bit(pixels: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 as PNG with 16 bits a channel, which Pillow reads and cannot write."""
    height, width, _ = pixels.shape
    deep = (pixels.astype(np.uint32) * 257).astype(">u2").reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in deep)  # each begins with the number of its filter
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
