"""Read what Pillow does not: TIFFs of many bands, DICOM and HEIF, each with a package of its own that is optional.

Legend: H height, W width in pixels, B bands.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from graftline.data.decoding import DecodeError, Decoding, Look, to_8_bits

# The modules of each extra of graftline, and the packages that a served model needs for them.
EXTRAS = {
    "tiff": {"tifffile": "tifffile", "imagecodecs": "imagecodecs"},
    "dicom": {"pydicom": "pydicom"},
    "heif": {"pi_heif": "pi-heif"},
}
EXTENSIONS = {".dcm": "DICOM", ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: BigTIFF
_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # major brands, ISO/IEC 23008-12
_TAGS = {
    "width": 256,
    "height": 257,
    "bits": 258,
    "photometric": 262,
    "bands": 277,
    "extra": 338,
    "kind": 339,
    "turn": 274,
}
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_INTEGERS = {3: "H", 4: "I", 16: "Q"}  # by the type of a tag; the last one in BigTIFF
_MOST_TAGS = 65_535  # what a TIFF can count; a BigTIFF could claim any number
_SMALL_TILE = 2**20  # pixels; tiles of 1,024 x 1,024 are usual, also around an image that is smaller
_ALPHA = (1, 2)  # of the tag ExtraSamples
_GRAY, _RGB = (0, 1), 2  # of the tag PhotometricInterpretation
_KINDS = {1: "bits", 2: "bits with a sign", 3: "bits in floating point"}  # of the tag SampleFormat


def is_dicom(head: bytes) -> bool:
    """Tell whether a file's first bytes are those of DICOM."""
    return head[128:132] == b"DICM"


def is_heif(head: bytes) -> bool:
    """Tell whether a file's first bytes are those of HEIF with HEVC, as phones write it (HEIC); not of AVIF."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF and b"avif" not in head[:64]


class TiffHeader(NamedTuple):
    """What a TIFF says of its first picture."""

    width: int
    height: int
    bands: int  # without transparency
    bits: int  # per band
    kind: int  # 1 unsigned, 2 signed, 3 floating point
    photometric: int
    orientation: int

    @property
    def is_gray_or_rgb(self) -> bool:
        """Whether its numbers are light, not indices, inks or a camera's sensor."""
        return self.photometric in (*_GRAY, _RGB)

    @property
    def has_bands(self) -> bool:
        """Whether it has bands of which nobody says that they are a picture's colors."""
        return self.bands > 1 and (self.photometric in _GRAY or (self.photometric == _RGB and self.bands != 3))

    def is_read_by_bands(self, decoding: Decoding) -> bool:
        """Tell whether the settings ask for numbers of it that Pillow does not give."""
        is_deep_color = self.photometric == _RGB and self.bands == 3 and (self.bits > 8 or self.kind > 1)
        return (self.has_bands and decoding.settings.bands is not None) or (
            is_deep_color and decoding.settings.range is not None
        )

    def __str__(self) -> str:
        bands = f"{self.bands} bands" if self.bands > 1 else "one band"
        return f"a TIFF of {bands} of {self.bits} {_KINDS.get(self.kind, 'bits')}"


def read_tiff_header(file: BinaryIO) -> TiffHeader | None:
    """Return what a TIFF says of its first picture; None for any other file, and for a damaged one."""
    file.seek(0)
    start = file.read(16)
    if not start.startswith(_TIFF):
        return None
    try:
        tags = ImageFileDirectory_v2(start if 43 in start[2:4] else start[:8])
        file.seek(tags.next)
        tags.load(file)
        found: dict[str, Any] = {name: tags.get(tag) for name, tag in _TAGS.items()}
        alpha = sum(sample in _ALPHA for sample in found["extra"] or ())
        return TiffHeader(
            int(found["width"]),
            int(found["height"]),
            int(found["bands"] or 1) - alpha,
            int((found["bits"] or (1,))[0]),
            int((found["kind"] or (1,))[0]),
            int(found["photometric"]),
            int(found["turn"] or 1),
        )
    except Exception:  # a parser of what may be anything; whoever reads the file next says what is wrong
        return None
    finally:
        file.seek(0)


def tile_size(file: BinaryIO) -> tuple[int, int]:
    """Return width and length of a TIFF's tiles in pixels; (0, 0) where it is in strips, and of any other file.

    They are read by hand: of a tag that stands twice libtiff takes the first and Pillow the last, here the larger
    one counts.

    Raises:
        DecodeError: its tags cannot be read.
    """
    file.seek(0)
    start = file.read(16)
    if not start.startswith(_TIFF):
        file.seek(0)
        return 0, 0
    order, is_big = "<" if start.startswith(b"II") else ">", 43 in start[2:4]
    entry = struct.Struct(order + ("HHQ8s" if is_big else "HHI4s"))  # tag, type, count, value
    sides = {_TILE_WIDTH: 0, _TILE_LENGTH: 0}
    try:
        (place,) = struct.unpack_from(order + ("8xQ" if is_big else "4xI"), start)
        file.seek(place)
        (count,) = struct.unpack(order + ("Q" if is_big else "H"), file.read(8 if is_big else 2))
        tags = file.read(min(count, _MOST_TAGS) * entry.size)
        for tag, kind, _, value in entry.iter_unpack(tags[: len(tags) // entry.size * entry.size]):
            if tag in sides:
                (side,) = struct.unpack_from(order + _INTEGERS[kind], value)
                sides[tag] = max(sides[tag], side)
    except (struct.error, KeyError, OverflowError, ValueError) as error:
        raise DecodeError("broken", "the tags of the TIFF cannot be read") from error
    finally:
        file.seek(0)
    return sides[_TILE_WIDTH], sides[_TILE_LENGTH]


def check_tiles(file: BinaryIO, decoding: Decoding) -> None:
    """Raise a DecodeError where a TIFF has too large tiles: each is inflated whole, however small the image is."""
    width, length = tile_size(file)
    if width * length > max(decoding.max_pixels, _SMALL_TILE):
        tiles = f"tiles of {width:,} x {length:,}"
        raise DecodeError("too_large", f"{tiles} are more than {decoding.max_pixels:,} pixels")


def read_tiff(file: BinaryIO, header: TiffHeader, decoding: Decoding) -> np.ndarray:
    """Return the chosen bands of a TIFF's first picture, (H, W) or (H, W, 3), as they are.

    Raises:
        DecodeError: it has not got the bands, all of them are too large, or no package is there that reads them.
    """
    chosen: tuple[int, ...] = (1, 2, 3) if header.bands > 1 else (1,)
    if header.has_bands and decoding.settings.bands is not None:
        chosen = decoding.settings.bands
    if max(chosen) > header.bands:
        raise DecodeError("no_scale", f"{header}, without band {max(chosen)}")
    file.seek(0)
    with _package("tiff", f"{header}"):
        import tifffile

        page = tifffile.TiffFile(file).pages[0]
        tile = page.tilewidth * page.tilelength * page.tiledepth * page.samplesperpixel  # 0 where it is in strips
        if (count := max(page.size, tile)) > 3 * decoding.max_pixels:  # all bands are read, and a few chosen then
            most = f"those of {decoding.max_pixels:,} pixels of three colors"
            raise DecodeError("too_large", f"{count:,} numbers in {header.bands} bands are more than {most}")
        planes = page.asarray()  # (H, W, B), or band by band
    if page.planarconfig == 2:
        planes = np.moveaxis(planes, 0, -1)
    planes = planes.reshape(*planes.shape[:2], -1)  # (H, W) where there is one
    bands: np.ndarray = planes[:, :, [band - 1 for band in chosen]]
    return bands if len(chosen) == 3 else bands[:, :, 0]


def dicom_size(file: BinaryIO) -> tuple[int, int]:
    """Return width and height of a DICOM file's picture, which is not decoded."""
    from pydicom import dcmread

    _check_stored(file)
    content = dcmread(file, stop_before_pixels=True, specific_tags=["Columns", "Rows"])
    return int(content.Columns), int(content.Rows)


def _check_stored(file: BinaryIO) -> None:
    """Raise a DecodeError where all of a DICOM file is deflated: pydicom inflates it whole, to whatever size."""
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    read_preamble(file, force=False)
    if _read_file_meta_info(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise DecodeError("unreadable", "it is DICOM that is deflated, which may be a bomb: store it in another way")
    file.seek(0)


def read_dicom(file: BinaryIO, decoding: Decoding, look: Look) -> np.ndarray:
    """Return the first picture of a DICOM file, (H, W) or (H, W, 3) uint8.

    Grays are those of the modality (such as Hounsfield units), seen through the file's own window unless the
    settings have a range, with which those of 8 bits stay as they are; where the file has none, all that it can hold is
    seen.

    Raises:
        DecodeError: it holds too many pixels or none, is deflated, or pydicom is not there or cannot decode it.
    """
    with _package("dicom", "DICOM"):
        from pydicom import dcmread
        from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

        _check_stored(file)
        content = dcmread(file)
        if "PixelData" not in content:
            raise DecodeError("unreadable", "it is DICOM without a picture")
        check_size(int(content.Columns), int(content.Rows), decoding)
        stored = pixel_array(content, index=0)
        if content.PhotometricInterpretation == "PALETTE COLOR":
            stored = apply_color_lut(stored, content)
        if stored.ndim == 3:  # in color
            return stored if stored.dtype == np.uint8 else to_8_bits(stored, decoding.settings.range)
        numbers = apply_modality_lut(stored, content)
        if int(content.BitsStored) == 8 and np.array_equal(numbers, stored):
            numbers = stored.astype(np.uint8)  # a slope of 1 makes floating point of them
        look(numbers)
        limits = decoding.settings.range
        if limits is None:
            numbers = apply_voi_lut(numbers, content).astype(np.float32)  # of 8 bits, too: they may use fewer
            limits = _dicom_limits(content)
    gray = to_8_bits(numbers, limits)
    return 255 - gray if content.PhotometricInterpretation == "MONOCHROME1" else gray


def _dicom_limits(content: Any) -> tuple[float, float]:
    """Return between which numbers a DICOM file's grays lie, window applied (DICOM PS3.3, C.11.1 and C.11.2)."""
    if table := content.get("VOILUTSequence"):
        return 0, 2 ** int(table[0].LUTDescriptor[2]) - 1
    if table := content.get("ModalityLUTSequence"):
        return 0, 2 ** int(table[0].LUTDescriptor[2]) - 1
    bits = int(content.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if content.PixelRepresentation else (0, 2**bits - 1)
    slope, intercept = float(content.get("RescaleSlope", 1)), float(content.get("RescaleIntercept", 0))
    first, last = low * slope + intercept, high * slope + intercept
    return min(first, last), max(first, last)


def open_heif(file: BinaryIO) -> Any:
    """Return a HEIF file of which no picture is decoded yet."""
    import pi_heif

    return pi_heif.open_heif(file, convert_hdr_to_8bit=True)


def read_heif(file: BinaryIO, decoding: Decoding) -> Image.Image:
    """Return the main picture of a HEIF file, upright.

    Raises:
        DecodeError: it has too many pixels, or pi-heif is not there or cannot decode it.
    """
    with _package("heif", "HEIC"):
        content = open_heif(file)
        width, height = content.size
        check_size(width, height, decoding)
        image: Image.Image = content.to_pillow()
        return image


def check_size(width: int, height: int, decoding: Decoding) -> None:
    """Raise a DecodeError where an image has too many pixels, known from its header alone."""
    if width * height > decoding.max_pixels:
        raise DecodeError("too_large", f"{width:,} x {height:,} are more than {decoding.max_pixels:,} pixels")


def missing_modules(extra: str) -> list[str]:
    """Return the modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


@contextmanager
def _package(extra: str, what: str) -> Iterator[None]:
    """Say what a file is where the package that reads it is not there, or fails."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:  # decoders raise almost anything on broken data
        if missing_modules(extra):
            way_out = f"pip install 'graftline[{extra}]' reads it, or convert it"
            raise DecodeError("unreadable", f"it is {what}: {way_out}") from error
        reason = str(error) or type(error).__name__
        first = reason.splitlines()[0]
        raise DecodeError("unreadable", f"it is {what} that cannot be decoded ({first}): convert it") from error
