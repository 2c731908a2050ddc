"""HEIC of phones and DICOM of clinics are read where their packages are, and named with the way out elsewhere."""

import base64
import io
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graftline.data import readers
from graftline.data.decode import DecodeError, DecodeSettings, Decoding, count_pixels, decode, decode_rgb
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.errors import UserError

# 32 x 16 px, the left half (200, 40, 40), the right one (30, 60, 190); libheif 1.20 wrote it, which pi-heif cannot
HEIC = zlib.decompress(
    base64.b64decode(
        "eNpjYGCQSSupLMhIzUxmAILczDRDEDs3MzGNgYGxJje1JJEBAhQzUnKKoGyGgszkEgY0oJSZkw82xMWBgREIgYBxAYQGggAgVs7M"
        "zEsD80CiokBOKhOUl1GWbAhi8hVkluTClfzJLCgqANJ3MguS84F0KVCZMyMzSGgCWJHcB4Y/f3/8YGDgZ04A6pBwYORh/P8fpIAZ"
        "pIIZhOR2MTkkAiU1nRgZ0WQWKDSyTnu1btazB4oLDjQwMPA0gIRbkoCq2VwYDxYf7ATaIZycn1OUl5xTARTlZWADKmEQySwuSIV6"
        "zAGKNZJzEkEOU4C6XQBE/////wGQZgLSF0A0SLwgsyITpJGZg4MDSElkFuTCwhgYbKyNTMysLUB2RG5KIiiMfTQY1weJ++U8+/Nq"
        "///25/8X8jkfW8D1/yF/6Ndrk/9G3XD87XBrSWqocYzUXaGjnZtm8myZmvnK5tS090fUZO0+yTp0Gz96+8/hj7Pla4ZkBwCWineW"
    )
)
HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1_024}
EIGHT_BITS = {"SamplesPerPixel": 1, "BitsStored": 8, "HighBit": 7, "PhotometricInterpretation": "MONOCHROME2"}
AS_STORED = {"RescaleSlope": 1, "RescaleIntercept": 0}
GRAY = np.array([[0, 1_000, 1_024, 1_100, 4_095]], np.uint16)


def dicom(pixels: np.ndarray, **attributes: Any) -> bytes:
    """A DICOM file of (H, W) or (N, H, W) numbers of 12 bits, or of (H, W, 3) of 8."""
    dataset = pytest.importorskip("pydicom.dataset", reason="the extra 'dicom' reads it")
    content = dataset.Dataset()
    content.file_meta = dataset.FileMetaDataset()
    content.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"  # explicit VR, little endian, not compressed
    content.SOPClassUID, content.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    in_color = pixels.dtype == np.uint8
    content.Rows, content.Columns = pixels.shape[:2] if in_color else pixels.shape[-2:]
    content.SamplesPerPixel, content.PhotometricInterpretation = (3, "RGB") if in_color else (1, "MONOCHROME2")
    bits = 8 if in_color else 12
    content.BitsAllocated, content.BitsStored, content.HighBit = 8 * pixels.itemsize, bits, bits - 1
    content.PixelRepresentation = 0
    if in_color:
        content.PlanarConfiguration = 0
    for name, value in attributes.items():
        setattr(content, name, value)
    content.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    content.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def gray(content: bytes, levels: DecodeSettings = DecodeSettings()) -> list[int]:  # noqa: B008 - immutable
    pixels = decode_rgb(content, Decoding(levels))
    np.testing.assert_array_equal(pixels, pixels[:, :, :1].repeat(3, axis=2))
    levels_of_first_row: list[int] = pixels[0, :, 0].tolist()
    return levels_of_first_row


def test_dicom_without_a_window_shows_all_that_it_can_hold() -> None:
    assert gray(dicom(GRAY)) == [0, 62, 64, 68, 255]  # of 4,095
    assert decode(io.BytesIO(dicom(GRAY)))[1:] == ("DICOM", "dicom")


def test_dicom_is_seen_through_its_own_window() -> None:
    """-160 to 240 HU, by hand after PS3.3 C.11.2.1.2.1."""
    window = {**HOUNSFIELD, "WindowCenter": 40, "WindowWidth": 400}
    units = GRAY[0] - 1_024.0
    expected = np.rint(255 * np.clip((units - 39.5) / 399 + 0.5, 0, 1))
    np.testing.assert_allclose(gray(dicom(GRAY, **window)), expected, atol=1)
    inverted = gray(dicom(GRAY, **window, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(inverted, 255 - expected, atol=1)


def test_the_range_takes_the_place_of_the_window() -> None:
    content = dicom(GRAY, **HOUNSFIELD, WindowCenter=40, WindowWidth=400)
    assert gray(content, DecodeSettings(range=(-1_024, 1_024))) == [0, 125, 128, 137, 255]


def test_the_range_leaves_dicom_of_8_bits() -> None:
    """As it leaves a PNG of the same pixels."""
    pixels = np.array([[0, 1, 128, 255]], np.uint8)
    levels = DecodeSettings(range=(0, 4_000))
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    assert gray(dicom(pixels, **EIGHT_BITS), levels) == gray(png.getvalue(), levels) == pixels[0].tolist()
    assert gray(dicom(pixels, **EIGHT_BITS, **AS_STORED), levels) == pixels[0].tolist()
    inverted = {**EIGHT_BITS, "PhotometricInterpretation": "MONOCHROME1"}
    assert gray(dicom(pixels, **inverted), levels) == (255 - pixels[0]).tolist()
    assert gray(dicom(pixels // 4, **{**EIGHT_BITS, "BitsStored": 6, "HighBit": 5})) == [0, 0, 130, 255]  # of 63


@pytest.mark.parametrize("attributes", [EIGHT_BITS, EIGHT_BITS | AS_STORED])
def test_percentiles_of_dicom_of_8_bits_are_refused(tmp_path: Path, attributes: dict[str, Any]) -> None:
    """As those of PNGs are: the range that would be measured leaves them as they are."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 16), dtype=np.uint8)
    for label, images in zip(("healthy", "ill"), noise, strict=True):
        (tmp_path / "scans" / label).mkdir(parents=True)
        for number, pixels in enumerate(images):
            (tmp_path / "scans" / label / f"{number}.dcm").write_bytes(dicom(pixels, **attributes))
    levels, versions = DecodeSettings(percentiles=(1, 99)), str(tmp_path / "versions")
    with pytest.raises(UserError, match="percentiles is set, but no training image has more than 8 bits"):
        Ingest(None, str(tmp_path / "scans"), Folder(), Split(), directory=versions, decode=levels).run()


def test_dicom_in_color_and_of_several_frames() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_rgb(dicom(rgb)), rgb)
    frames = np.stack([GRAY, GRAY[:, ::-1]])
    assert gray(dicom(frames, NumberOfFrames=2)) == [0, 62, 64, 68, 255]


def test_dicom_without_a_picture_and_too_large_ones_are_refused() -> None:
    with pytest.raises(DecodeError, match="1 are more than 4 pixels") as caught:
        decode_rgb(dicom(GRAY), Decoding(max_pixels=4))
    assert caught.value.flaw == "too_large"
    with pytest.raises(DecodeError, match="it is DICOM"):
        decode_rgb(bytes(128) + b"DICM" + bytes(99))


def test_deflated_dicom_is_refused_before_it_is_inflated() -> None:
    """64 MB of one gray are 64 kB so; pydicom would inflate them before the size is known."""
    whole = dicom(GRAY)
    start = whole.index(b"\x08\x00\x16\x00")  # after the file's meta information
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    content = deflate.compress(whole[start:] + bytes(64_000_000)) + deflate.flush()
    plain, deflated = b"\x14\x001.2.840.10008.1.2.1\0", b"\x16\x001.2.840.10008.1.2.1.99"  # lengths and names
    (length,) = struct.unpack_from("<I", whole, 140)
    meta = whole[:140] + struct.pack("<I", length + 2) + whole[144:start]
    assert plain in meta
    bomb = meta.replace(plain, deflated) + content
    decode_rgb(whole)  # imports pydicom
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="it is DICOM that is deflated"):
            decode_rgb(bomb)
        assert count_pixels(bomb) is None
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert count_pixels(whole) == GRAY.size


def test_heic_is_read() -> None:
    pytest.importorskip("pi_heif", reason="the extra 'heif' reads it")
    pixels = decode_rgb(HEIC)
    assert pixels.shape == (16, 32, 3)
    np.testing.assert_allclose(pixels[:, :14], np.broadcast_to((200, 40, 40), (16, 14, 3)), atol=3)
    np.testing.assert_allclose(pixels[:, 18:], np.broadcast_to((30, 60, 190), (16, 14, 3)), atol=3)
    with pytest.raises(DecodeError, match="32 x 16 are more than 500 pixels"):
        decode_rgb(HEIC, Decoding(max_pixels=500))
    with pytest.raises(DecodeError, match="it is HEIC that cannot be decoded"):
        decode_rgb(HEIC[:300])


@pytest.mark.parametrize(
    ("content", "module", "extra", "named"),
    [(HEIC, "pi_heif", "heif", "HEIC"), (bytes(128) + b"DICM" + bytes(99), "pydicom", "dicom", "DICOM")],
)
def test_without_the_package_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, content: bytes, module: str, extra: str, named: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.setattr(readers, "missing_modules", lambda _: [module])
    with pytest.raises(
        DecodeError, match=rf"it is {named}: pip install 'graftline\[{extra}\]' reads it, or convert it"
    ):
        decode_rgb(content)


def test_a_version_knows_what_reads_its_files(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "scans", healthy=12, ill=12)
    (root / "ill" / "scan.dcm").write_bytes(dicom(np.tile(GRAY, (8, 2))))
    result = Ingest(None, str(root), Folder(), Split(), directory=str(tmp_path / "versions")).run()
    assert result.findings == []  # the extension is right
    assert result.version.decoding.extras == ("dicom",)
    assert [image.format for image in [decode((root / "ill" / "scan.dcm").open("rb"))]] == ["DICOM"]
