"""Each kind of image file gives the right RGB pixels, and what is no image gives a reason."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graftline.data.decode import MAX_PIXELS, DecodeError, DecodeSettings, Decoding, count_pixels, decode_rgb

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = RGB[:, :, 0]


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int, color_type: int = 0) -> bytes:
    """A PNG that says how large it is and has nothing else."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    header = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    data = b"IDAT" + zlib.compress(b"\0")
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


def on_all_channels(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=-1)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_is_kept(form: str) -> None:
    pixels = decode_rgb(encode(Image.fromarray(RGB), form))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, RGB)


@pytest.mark.parametrize(("form", "options"), [("WEBP", {"lossless": True}), ("JPEG2000", {"irreversible": False})])
def test_rgb_is_kept_by_lossless_codecs(form: str, options: dict[str, object]) -> None:
    np.testing.assert_array_equal(decode_rgb(encode(Image.fromarray(RGB), form, **options)), RGB)


@pytest.mark.parametrize("form", ["JPEG", "AVIF"])
def test_lossy_codecs_are_close(form: str) -> None:
    smooth = np.broadcast_to(np.linspace(40, 200, 64, dtype=np.uint8)[:, None, None], (64, 64, 3)).copy()
    np.testing.assert_allclose(decode_rgb(encode(Image.fromarray(smooth), form, quality=95)), smooth, atol=4)


def test_a_path_a_string_and_bytes_give_the_same(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(encode(Image.fromarray(RGB), "PNG"))
    for source in (file, str(file), file.read_bytes()):
        np.testing.assert_array_equal(decode_rgb(source), RGB)


def test_gray_is_repeated() -> None:
    np.testing.assert_array_equal(decode_rgb(encode(Image.fromarray(GRAY), "PNG")), on_all_channels(GRAY))


def test_one_bit_is_black_and_white() -> None:
    bits = GRAY > 127
    image = Image.fromarray((bits * 255).astype(np.uint8)).convert("1")
    np.testing.assert_array_equal(decode_rgb(encode(image, "PNG")), on_all_channels(bits * np.uint8(255)))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_are_scaled_to_the_nearest_8(form: str) -> None:
    deep = np.array([[0, 128, 129, 257], [32_767, 32_768, 65_406, 65_535]], dtype=np.uint16)
    expected = np.array([[0, 0, 1, 1], [127, 128, 254, 255]], dtype=np.uint8)  # round(value / 257), by hand
    np.testing.assert_array_equal(decode_rgb(encode(Image.fromarray(deep), form)), on_all_channels(expected))


def test_16_bits_in_a_32_bit_tiff_are_scaled_too() -> None:
    deep = np.array([[0, 257, 65_535]], dtype=np.int32)
    np.testing.assert_array_equal(decode_rgb(encode(Image.fromarray(deep), "TIFF"))[0, :, 0], [0, 1, 255])
    with pytest.raises(DecodeError, match="16 bits"):
        decode_rgb(encode(Image.fromarray(deep * 2), "TIFF"))


def test_16_bit_color_keeps_its_high_bytes() -> None:
    """Pillow cannot write one, so the PNG is put together by hand: one row of two pixels."""
    content = b"IHDR" + struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", 0x1234, 0x8000, 0xFFFF, 0, 0x0100, 0xABCD)
    data = b"IDAT" + zlib.compress(row)
    chunks = [content, data, b"IEND"]
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
    np.testing.assert_array_equal(decode_rgb(file), [[[0x12, 0x80, 0xFF], [0x00, 0x01, 0xAB]]])


def test_floating_point_within_0_to_1_is_scaled() -> None:
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    np.testing.assert_array_equal(decode_rgb(encode(image, "TIFF"))[0, :, 0], [0, 128, 255])
    with pytest.raises(DecodeError, match=r"0\.\.1"):
        decode_rgb(encode(Image.fromarray(np.array([[0.0, 300.0]], dtype=np.float32)), "TIFF"))


def test_transparency_is_laid_on_white() -> None:
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 128]]], dtype=np.uint8)
    pixels = decode_rgb(encode(Image.fromarray(rgba), "PNG"))[0]
    np.testing.assert_array_equal(pixels[:2], [[200, 0, 0], [255, 255, 255]])
    np.testing.assert_allclose(pixels[2], [227, 127, 127], atol=1)  # 0.5 x color + 0.5 x 255


def test_transparency_of_gray_and_of_palettes_is_laid_on_white() -> None:
    gray = np.array([[[10, 255], [10, 0]]], dtype=np.uint8)
    np.testing.assert_array_equal(decode_rgb(encode(Image.fromarray(gray, "LA"), "PNG"))[0, :, 0], [10, 255])
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 50, 60, 70])
    palette.putpixel((1, 0), 1)
    pixels = decode_rgb(encode(palette, "PNG", transparency=0))
    np.testing.assert_array_equal(pixels[0], [[255, 255, 255], [50, 60, 70]])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "RGB", "1"])
def test_large_images_are_converted_strip_by_strip(mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1_501, 1_999, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(noise[:, :, 0]))
    options = {"transparency": bytes(range(256))} if mode == "P" else {}
    content = encode(image, "TIFF" if mode == "CMYK" else "PNG", **options)
    whole: Image.Image = Image.open(io.BytesIO(content))
    if mode.endswith(("A", "P")):
        whole = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole.convert("RGBA"))
    np.testing.assert_array_equal(decode_rgb(content), np.asarray(whole.convert("RGB")))


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_is_converted(form: str) -> None:
    for ink, expected in (
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
    ):
        image = Image.new("CMYK", (16, 16), ink)
        np.testing.assert_allclose(decode_rgb(encode(image, form)), np.full((16, 16, 3), expected), atol=2)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(form: str) -> None:
    red, blue = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = decode_rgb(encode(red, form, save_all=True, append_images=[blue], **options))
    np.testing.assert_array_equal(pixels, np.full((16, 16, 3), (255, 0, 0)))


# what a viewer must do for each value of the EXIF tag 0x0112 (EXIF 2.32, section 4.6.4)
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_exif_rotation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = decode_rgb(encode(Image.fromarray(RGB), form, exif=exif, **options))
    np.testing.assert_array_equal(pixels, UPRIGHT[orientation](RGB))


def test_exif_rotation_is_applied_to_16_bits_and_to_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(GRAY.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode_rgb(encode(deep, "PNG", exif=exif)), np.rot90(on_all_channels(GRAY), -1))
    left_dark = np.zeros((32, 64, 3), dtype=np.uint8)
    left_dark[:, 32:] = 255
    pixels = decode_rgb(encode(Image.fromarray(left_dark), "JPEG", exif=exif))
    assert pixels.shape == (64, 32, 3)
    assert pixels[:16].max() < 10
    assert pixels[48:].min() > 245


def test_several_pictures_in_a_jpeg_give_the_first() -> None:
    red, blue = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
    pixels = decode_rgb(encode(red, "MPO", save_all=True, append_images=[blue]))
    np.testing.assert_allclose(pixels, np.full((16, 16, 3), (255, 0, 0)), atol=2)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # ours is undone by pytest's own filters
@pytest.mark.parametrize(
    ("content", "flaw"),
    [
        (b"", "empty"),
        (b"these are words", "unreadable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable"),  # would start Ghostscript
        (png_header(5, 7), "broken"),
        (png_header(50_000, 50_000), "too_large"),  # above the limit at which Pillow itself raises
        (png_header(10_000, 9_000), "too_large"),  # between its warning and its error
    ],
)
def test_what_cannot_be_decoded_has_a_reason(content: bytes, flaw: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_rgb(content)
    assert caught.value.flaw == flaw
    assert str(caught.value) == caught.value.reason != ""


def test_a_missing_file_has_a_reason(tmp_path: Path) -> None:
    for path, flaw in ((tmp_path / "none.png", "missing"), (tmp_path, "unreadable")):
        with pytest.raises(DecodeError) as caught:
            decode_rgb(path)
        assert caught.value.flaw == flaw


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(form: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = encode(noise, form)
    with pytest.raises(DecodeError):
        decode_rgb(content[: int(len(content) * share)])


def test_the_limit_of_pixels_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    image = encode(Image.fromarray(RGB), "PNG")  # 35 pixels
    assert decode_rgb(image, Decoding(max_pixels=35)).shape == RGB.shape
    with pytest.raises(DecodeError, match="more than 34 pixels") as caught:
        decode_rgb(image, Decoding(max_pixels=34))
    assert caught.value.flaw == "too_large"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # to be put back after the next line
    with pytest.raises(DecodeError) as caught:
        decode_rgb(png_header(14_000, 14_000), Decoding(max_pixels=200_000_000))  # Pillow alone would refuse it
    assert caught.value.flaw == "broken"
    assert MAX_PIXELS < 14_000 * 14_000 / 2


def test_pillow_does_not_warn_of_what_we_check(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png_header(10_000, 9_000))
    (tmp_path / "odd.jpg").write_bytes(encode(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"))
    program = "import sys, graftline.data.decode as d\nfor f in sys.argv[1:]: print(d.decode_rgb(f).shape)"
    command = [sys.executable, "-c", program, str(tmp_path / "odd.jpg"), str(tmp_path / "large.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(5, 7, 3)"
    assert "DecodeError: 10,000 x 9,000" in done.stderr
    assert "Warning" not in done.stderr


def test_importing_it_is_light() -> None:
    program = "import graftline.data.decode, sys; print(sorted({'torch', 'pandas', 'rich', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def tiled(side: int, *tiles: int, order: str = "<", kind: int = 4, big: bool = False) -> bytes:
    """A deflated TIFF of ``side`` x ``side`` px, 99 in its corner, in tiles of ``tiles[0]``; others follow as tags."""
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    tags += [(tag, kind, tile) for tag in (322, 323) for tile in tiles]
    pixels = bytearray(tiles[0] ** 2)
    pixels[0] = 99
    content = zlib.compress(pixels, 9)
    start, head, entry = (16, "Q", "HHQ8s") if big else (8, "H", "HHI4s")
    place = start + struct.calcsize(order + head) + (len(tags) + 2) * struct.calcsize(order + entry) + 8
    tags += [(324, 4, place), (325, 4, len(content))]
    formats = {3: "H", 4: "I", 13: "I", 16: "Q"}
    entries = [
        struct.pack(order + entry, tag, of, 1, struct.pack(order + formats[of], value)) for tag, of, value in tags
    ]
    first = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    count = struct.pack(order + head, len(tags))
    return (b"II" if order == "<" else b"MM") + first + count + b"".join(entries) + bytes(8) + content


@pytest.mark.parametrize("options", [{}, {"order": ">"}, {"kind": 3}, {"big": True}, {"big": True, "kind": 16}])
def test_a_tile_may_be_larger_than_the_image(options: dict[str, Any]) -> None:
    content = tiled(100, 256, **options)
    pixels = decode_rgb(content, Decoding(max_pixels=10_000))
    assert pixels.shape == (100, 100, 3)
    assert (pixels[0, 0, 0], pixels.sum()) == (99, 3 * 99)
    assert count_pixels(content) == 256 * 256


@pytest.mark.parametrize("tiles", [(2_048,), (2_048, 16), (16, 2_048)])
@pytest.mark.parametrize("options", [{}, {"order": ">"}, {"big": True}])
def test_a_tile_is_not_larger_than_an_image_may_be(tiles: tuple[int, ...], options: dict[str, Any]) -> None:
    """A tile is inflated whole; of a tag that stands twice libtiff takes the first one, and Pillow the last."""
    content = tiled(16, *tiles, **options)
    assert len(content) < 5_000
    with pytest.raises(DecodeError, match="tiles of 2,048 x 2,048 are more than 4,000,000 pixels") as caught:
        decode_rgb(content, Decoding(max_pixels=4_000_000))
    assert caught.value.flaw == "too_large"
    assert count_pixels(content) == 2_048 * 2_048


def test_a_tile_of_many_bands_is_not_larger_either() -> None:
    pytest.importorskip("tifffile", reason="the extra 'tiff' reads it")
    one, seven = (struct.pack("<HHIHH", 277, 3, 1, bands, 0) for bands in (1, 7))
    content = tiled(16, 512).replace(one, seven)
    settings = DecodeSettings(bands=(1, 2, 3))
    with pytest.raises(DecodeError, match="1,835,008 numbers in 7 bands are more than those of 1,000 pixels") as caught:
        decode_rgb(content, Decoding(settings, max_pixels=1_000))
    assert caught.value.flaw == "too_large"
    assert count_pixels(content) == 512 * 512 * 3


def test_tiles_of_an_unknown_size_are_refused() -> None:
    content = tiled(16, 2_048, kind=13)
    with pytest.raises(DecodeError, match="the tags of the TIFF cannot be read"):
        decode_rgb(content)
    assert count_pixels(content) is None
