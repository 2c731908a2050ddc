"""Files that are more than a picture of 8 bits: what they are is said, and settings choose what is seen of them."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from graftline.augment.preprocess import Preprocessing
from graftline.data import readers
from graftline.data.checks import check_images
from graftline.data.decode import DecodeError, DecodeSettings, Decoding, decode_rgb
from graftline.data.findings import Finding
from graftline.data.ingest import Ingest, IngestResult
from graftline.data.review import find_small_range
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.errors import UserError

tifffile = pytest.importorskip("tifffile", reason="the extra 'tiff' reads bands")

BANDS = np.random.default_rng(0).integers(0, 4_000, (6, 5, 13)).astype(np.uint16)  # (H, W, B)


def tiff(planes: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    options = {"photometric": "minisblack", "planarconfig": "contig" if planes.ndim == 3 else None, **options}
    tifffile.imwrite(buffer, planes, **options)
    return buffer.getvalue()


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of (H, W, 2 to 4) uint16, which Pillow cannot write."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def encode(array: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(BANDS), "a TIFF of 13 bands of 16 bits"),
        (tiff(BANDS[:, :, :5].astype(np.uint8)), "a TIFF of 5 bands of 8 bits"),
        (tiff(BANDS[:, :, :2].astype(np.int16)), "a TIFF of 2 bands of 16 bits with a sign"),
        (
            tiff(BANDS[:, :, :3] / np.float32(4_000), photometric="rgb"),
            "a TIFF of 3 bands of 32 bits in floating point",
        ),
        (tiff(np.array([[0, 1_000.0]])), "a TIFF of one band of 64 bits in floating point"),
        (tiff(np.array([[0, 1_000]], np.float32)), "floating-point pixels outside 0..1 (0 to 1,000)"),
        (tiff(np.array([[-1_024, 1_000]], np.int16)), "negative values (-1,024 to 1,000)"),
        (tiff(np.array([[0, 70_000]], np.int32)), "integer pixels outside 16 bits (0 to 70,000)"),
    ],
)
def test_what_has_no_known_scale_is_said(content: bytes, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_rgb(content)
    assert (caught.value.flaw, caught.value.reason) == ("no_scale", reason)
    assert capfd.readouterr().err == ""  # nothing of Pillow's own


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"planarconfig": "separate"},
        {"compression": "zlib", "predictor": True, "tile": (16, 16)},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"photometric": "rgb"},
    ],
)
def test_three_bands_and_a_range_are_chosen(options: dict[str, Any]) -> None:
    decoding = Decoding(DecodeSettings(bands=(4, 3, 1), range=(0, 4_000)))
    planes = np.moveaxis(BANDS, -1, 0) if options.get("planarconfig") == "separate" else BANDS
    expected = np.rint(BANDS[:, :, [3, 2, 0]] / 4_000 * 255)
    np.testing.assert_array_equal(decode_rgb(tiff(planes, **options), decoding), expected)


def test_compressed_tiffs_are_read_with_imagecodecs() -> None:
    pytest.importorskip("imagecodecs", reason="the extra 'tiff' reads LZW")
    content = tiff(BANDS, compression="lzw", predictor=True)
    assert decode_rgb(content, Decoding(DecodeSettings(bands=(1,), range=(0, 4_000)))).shape == (6, 5, 3)


def test_one_band_is_gray_and_what_lies_outside_the_range_is_cut_off() -> None:
    pixels = decode_rgb(tiff(BANDS), Decoding(DecodeSettings(bands=(13,), range=(1_000, 2_000))))
    gray = np.rint(np.clip((BANDS[:, :, 12] - 1_000.0) / 1_000, 0, 1) * 255)
    for channel in range(3):
        np.testing.assert_array_equal(pixels[:, :, channel], gray)


def test_bands_of_8_bits_stay_as_they_are() -> None:
    planes = (BANDS[:, :, :5] // 16).astype(np.uint8)
    decoding = Decoding(DecodeSettings(bands=(5, 1, 2), range=(0, 10)))
    np.testing.assert_array_equal(decode_rgb(tiff(planes), decoding), planes[:, :, [4, 0, 1]])


@pytest.mark.parametrize(
    ("content", "limits", "expected"),
    [
        (tiff(np.array([[-1_000, 0, 1_000, 5_000]], np.int16)), (-1_000, 1_000), [0, 128, 255, 255]),
        (tiff(np.array([[0.5, 2, np.nan, np.inf]], np.float32)), (0, 2), [64, 255, 0, 255]),
        (tiff(np.array([[-1.0, 0, 1, 9]])), (-1, 1), [0, 128, 255, 255]),  # float64, which Pillow does not read
        (encode(np.array([[0, 2_000, 4_000, 65_535]], np.uint16), "PNG"), (0, 4_000), [0, 128, 255, 255]),
        (encode(np.array([[0, 2_000, 4_000, 65_535]], np.int32), "TIFF"), (0, 4_000), [0, 128, 255, 255]),
        (encode(np.array([[0, 1, 128, 255]], np.uint8), "PNG"), (0, 4_000), [0, 1, 128, 255]),
    ],
)
def test_the_range_is_of_everything_deeper_than_8_bits(
    content: bytes, limits: tuple[float, float], expected: list[int]
) -> None:
    np.testing.assert_array_equal(decode_rgb(content, Decoding(DecodeSettings(range=limits)))[0, :, 0], expected)


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_the_range_of_color_of_16_bits_keeps_the_low_bytes(form: str) -> None:
    pixels = BANDS[:, :, :3]
    content = deep_png(pixels) if form == "png" else tiff(pixels, photometric="rgb")
    found = decode_rgb(content, Decoding(DecodeSettings(range=(0, 4_000))))
    np.testing.assert_array_equal(found, np.rint(pixels / 4_000 * 255))
    assert len(np.unique(decode_rgb(content))) <= 16  # of 4,000: what is seen without it


def test_the_range_leaves_transparency() -> None:
    pixels = np.array([[[1_000, 1_000, 1_000, 65_535], [1_000, 1_000, 1_000, 0]]], np.uint16)
    found = decode_rgb(deep_png(pixels), Decoding(DecodeSettings(range=(0, 2_000))))
    np.testing.assert_array_equal(found[0, :, 0], [128, 255])


def test_gray_of_16_bits_with_transparency_has_no_range() -> None:
    content = deep_png(np.full((4, 5, 2), 1_000, np.uint16))
    assert decode_rgb(content).shape == (4, 5, 3)
    with pytest.raises(DecodeError, match="gray of 16 bits with transparency: save it without"):
        decode_rgb(content, Decoding(DecodeSettings(range=(0, 4_000))))


def test_pictures_have_no_bands_to_choose() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    for form in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(decode_rgb(encode(rgb, form), Decoding(DecodeSettings(bands=(8, 3, 2)))), rgb)


def test_a_band_that_is_not_there_and_too_many_pixels_are_said() -> None:
    with pytest.raises(DecodeError, match="13 bands of 16 bits, without band 14"):
        decode_rgb(tiff(BANDS), Decoding(DecodeSettings(bands=(14,))))
    with pytest.raises(DecodeError, match="5 x 6 are more than 29 pixels"):
        decode_rgb(tiff(BANDS), Decoding(DecodeSettings(bands=(1,)), max_pixels=29))
    with pytest.raises(DecodeError, match="390 numbers in 13 bands are more than those of 129 pixels") as caught:
        decode_rgb(tiff(BANDS), Decoding(DecodeSettings(bands=(1,)), max_pixels=129))
    assert caught.value.flaw == "too_large"
    assert decode_rgb(tiff(BANDS), Decoding(DecodeSettings(bands=(1,), range=(0, 4_000)), max_pixels=130)).size == 90


def test_without_tifffile_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    monkeypatch.setattr(readers, "missing_modules", lambda _: ["tifffile"])
    with pytest.raises(DecodeError, match=r"it is a TIFF of 13 bands of 16 bits: pip install 'graftline\[tiff\]'"):
        decode_rgb(tiff(BANDS), Decoding(DecodeSettings(bands=(1,))))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"bands": (1, 2)}, r"DecodeSettings.bands is \[1, 2\]"),
        ({"bands": (0,)}, "DecodeSettings.bands"),
        ({"range": (5, 5)}, "DecodeSettings.range"),
        ({"percentiles": (99, 1)}, "DecodeSettings.percentiles"),
        ({"percentiles": (0, 101)}, "DecodeSettings.percentiles"),
    ],
)
def test_wrong_levels_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        DecodeSettings(**wrong)


def write_scans(root: Path, highest: int, count: int = 12) -> Path:
    """Gray files of 16 bits with numbers up to ``highest``."""
    for label in ("a", "b"):
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = np.random.default_rng([number, ord(label)]).integers(0, highest + 1, (16, 16)).astype(np.uint16)
            (root / label / f"{number}.png").write_bytes(encode(pixels, "PNG"))
    return root


def make_ingest(tmp_path: Path, root: Path, **settings: Any) -> Ingest:
    return Ingest(root.name, str(root), Folder(), Split(), directory=str(tmp_path / "versions"), **settings)


def ingest(tmp_path: Path, root: Path, **settings: Any) -> IngestResult:
    return make_ingest(tmp_path, root, **settings).run()


@pytest.mark.parametrize(("highest", "warned"), [(4_095, True), (16_383, True), (60_000, False)])
def test_a_small_part_of_16_bits_is_told(tmp_path: Path, highest: int, warned: bool) -> None:
    root = write_scans(tmp_path / "scans", highest)
    found = [finding.kind for finding in ingest(tmp_path, root).findings]
    assert ("small_range" in found) == warned
    settled = ingest(tmp_path, root, decode=DecodeSettings(range=(0, highest)))
    assert "small_range" not in [finding.kind for finding in settled.findings]


def noise(kind: type[np.integer[Any]], low: int, high: int, hot: int | None = None) -> np.ndarray:
    pixels = np.random.default_rng(high).integers(low, high, (64, 64)).astype(kind)
    if hot is not None:
        pixels[5, 7] = hot
    return pixels


def color(pixels: np.ndarray) -> bytes:
    return deep_png(np.stack([pixels] * 3, axis=-1))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (tiff(noise(np.int16, 0, 4_096)), (0, 4_096)),
        (tiff(noise(np.uint32, 0, 4_096)), (0, 4_096)),
        (
            tiff(noise(np.int32, 0, 256)),
            (0, 256),
        ),  # what Pillow makes of a picture whose numbers numpy holds as integers
        (tiff(noise(np.uint16, 29_000, 31_500)), (29_000, 31_500)),  # thermal
        (tiff(noise(np.uint16, 29_000, 31_500, hot=65_535)), (29_000, 31_500)),
        (tiff(noise(np.int32, 0, 4_096, hot=65_535)), (0, 4_096)),
        (color(noise(np.uint16, 0, 4_096, hot=65_535)), (0, 4_096)),
        (tiff(noise(np.int32, 0, 65_536)), None),
        (tiff(noise(np.uint16, 20_000, 40_000)), None),
    ],
)
def test_integers_of_which_few_gray_levels_are_left_are_told(
    tmp_path: Path, content: bytes, told: tuple[int, int] | None
) -> None:
    (tmp_path / "scan").write_bytes(content)
    images = check_images([str(tmp_path / "scan")], Decoding(), 1, tmp_path / "checked.parquet")
    found = find_small_range(images, None)
    assert [finding.kind for finding in found] == ([] if told is None else ["small_range"])
    if told is not None:
        assert len(np.unique(decode_rgb(content))) < 20
        assert (images["low"][0], images["high"][0]) == pytest.approx(told, abs=257)


def test_a_dark_image_is_dark() -> None:
    for kind in (np.uint16, np.int16, np.int32):
        assert decode_rgb(tiff(noise(kind, 0, 200))).max() == 1


def test_levels_are_part_of_the_version(tmp_path: Path) -> None:
    root = write_scans(tmp_path / "scans", 60_000)
    plain, other = (
        ingest(tmp_path, root).version,
        ingest(tmp_path, root, decode=DecodeSettings(range=(0, 4_000))).version,
    )
    assert other.digest != plain.digest
    assert other.samples("train").decoding.settings == DecodeSettings(range=(0, 4_000))
    again = ingest(tmp_path, root, max_pixels=1_000).version
    assert again.digest == plain.digest  # a limit that refuses none of them changes nothing
    assert again.samples("test").decoding == Decoding(max_pixels=1_000)


def test_percentiles_are_measured_once_and_inherited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_scans(tmp_path / "scans", 4_000)
    levels = DecodeSettings(percentiles=(1, 99))
    first = ingest(tmp_path, root, decode=levels).version
    assert "Measuring the range: 14\n" in capsys.readouterr().out  # a bar in a terminal
    training = np.concatenate([np.asarray(Image.open(path)).reshape(-1) for path in first.samples("train").paths])
    measured = first.decoding.settings.range
    assert measured is not None
    np.testing.assert_allclose(measured, np.percentile(training, (1, 99)), atol=20)
    write_scans(root, 50_000, count=16)
    second = ingest(tmp_path, root, decode=levels).version
    assert second.digest != first.digest
    assert second.decoding.settings == first.decoding.settings
    anew = ingest(tmp_path, root, decode=levels, parent="none").version
    assert anew.decoding.settings.range != measured


def test_a_test_set_is_decoded_as_the_model_was_trained(tmp_path: Path) -> None:
    measured = DecodeSettings(percentiles=(1, 99))
    root, new = write_scans(tmp_path / "scans", 4_000), write_scans(tmp_path / "new", 60_000)
    trained = ingest(tmp_path, root, decode=measured, max_pixels=5_000).version

    def as_test(root: Path, **options: Any) -> DatasetVersion:
        digests = [trained.digest, trained.test_digest]
        found, _ = make_ingest(tmp_path, root, **options).run_as_test(
            trained.class_names, digests, None, trained.decoding
        )
        return found.version

    assert as_test(root) == trained
    assert as_test(new).decoding == trained.decoding
    assert as_test(new, decode=measured).decoding == trained.decoding, "measured on training images, not on these"
    own = as_test(new, decode=DecodeSettings(range=(0, 60_000)), max_pixels=9_000).decoding
    assert own == Decoding(DecodeSettings(range=(0, 60_000)), 9_000)
    assert ingest(tmp_path, root, decode=measured).version.decoding.settings == trained.decoding.settings


def test_percentiles_of_pictures_are_refused(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=12, dog=12)
    with pytest.raises(
        UserError, match=r"DecodeSettings.percentiles is set, but no training image has more than 8 bits"
    ):
        ingest(tmp_path, root, decode=DecodeSettings(percentiles=(1, 99)))


def test_a_tiff_of_bands_is_left_out_with_its_reason_or_used(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "tiles", crop=12, forest=12)
    (root / "crop" / "bands.tif").write_bytes(tiff(np.tile(BANDS, (2, 2, 1))))
    file = str(root / "crop" / "bands.tif")
    assert Finding("no_scale", file, "a TIFF of 13 bands of 16 bits") in ingest(tmp_path, root).findings
    version = ingest(tmp_path, root, decode=DecodeSettings(bands=(4, 3, 2), range=(0, 4_000))).version
    assert file in version.table()["path"].tolist()
    assert version.decoding.extras == ("tiff",)


def test_large_jpegs_are_decoded_reduced_where_asked(tmp_path: Path) -> None:
    photo = Image.fromarray(data.coffee()).resize((1_200, 800))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=90)
    whole = decode_rgb(buffer.getvalue())
    reduced = decode_rgb(buffer.getvalue(), Decoding(DecodeSettings(jpeg_side_px=200)))
    assert (whole.shape, reduced.shape) == ((800, 1_200, 3), (200, 300, 3))
    preprocessing = Preprocessing((96, 96), (0, 0, 0), (1, 1, 1))
    difference = np.abs(preprocessing.frame(reduced).astype(float) - preprocessing.frame(whole))
    assert difference.mean() < 1  # gray levels
    assert decode_rgb(buffer.getvalue(), Decoding(DecodeSettings(jpeg_side_px=900))).shape == whole.shape
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            photo.rotate(number).save(tmp_path / "photos" / label / f"{label}{number}.jpg")
    version = ingest(tmp_path, tmp_path / "photos", decode=DecodeSettings(jpeg_side_px=200), on_conflict="keep").version
    assert set(version.table()["height"]) == {800}
    assert version.samples("train").decoding.settings.jpeg_side_px == 200


def test_a_range_and_percentiles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"percentiles measures DecodeSettings\.range: give one of the two"):
        ingest(tmp_path, tmp_path, decode=DecodeSettings(range=(0, 9), percentiles=(1, 99)))
