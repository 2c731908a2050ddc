"""Say how image files become pixels: what training, preview, figures, bundle, prediction and serving share.

Needs numpy only, as the predictor imports it in a small container.

Legend: H height, W width in pixels, C channels.
"""

import errno
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from graftline.errors import UserError

# Pillow's own limit, where it starts to warn: a quarter of a gigabyte at three bytes a pixel (PIL.Image).
MAX_PIXELS = 89_478_485
DEEPEST = 65_535  # what the 255 of a picture is in a file of 16 bits

NO_FILE = "there is no such file"  # reason of an image that is missing
OUT_OF_REACH = "out of reach"  # how the reason of an image begins whose file system is away
# as that of a server that is gone, or of a disk that was pulled out; EIO is also a single file's on a failing disk
_AWAY = frozenset({"ESTALE", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ETIMEDOUT", "EREMOTEIO", "ENODEV"})

Look = Callable[[np.ndarray], None]  # is given (H, W) or (H, W, C) numbers of more than 8 bits
Flaw = Literal["missing", "empty", "unreadable", "broken", "too_large", "no_scale"]


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


def out_of_reach(error: BaseException) -> str | None:
    """Return why a file cannot be read if its file system is away, else None.

    >>> out_of_reach(OSError(errno.ESTALE, "Stale file handle")), out_of_reach(OSError("broken data stream"))
    ('out of reach (Stale file handle)', None)
    """
    if isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in _AWAY:
        return f"{OUT_OF_REACH} ({error.strerror})"
    return None


@dataclass(frozen=True)
class DecodeSettings:
    """Say which numbers of a file become which gray levels (Hydra target); files that hold a plain picture need none.

    Attributes:
        bands: three bands for red, green and blue, or one for gray, from 1, of TIFFs with more than three bands or
            with bands that are not said to be red, green and blue.
        range: the numbers that become 0 and 255 in files of more than 8 bits; what lies outside is cut off. Those of 8
            bits stay as they are. None: 0 and 65,535, in floating point 0 and 1, in DICOM the file's own window.
        percentiles: an ingest measures ``range`` at these percentiles of the training images, once: later versions
            inherit the numbers.
        jpeg_side_px: JPEGs are decoded at a half, a quarter or an eighth of their size, as long as no side becomes
            shorter than this; with twice the network's side large photographs take a fifth of the time, and its input
            differs by 2 gray levels at most. None: at their size. An ingest decodes them whole in any case.

    Raises:
        UserError: a value that cannot be.
    """

    bands: tuple[int, ...] | None = None
    range: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    jpeg_side_px: int | None = None

    def __post_init__(self) -> None:
        for name in ("bands", "range", "percentiles"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))  # a list, where a configuration gave it
        if self.jpeg_side_px is not None and self.jpeg_side_px < 1:
            raise UserError(f"DecodeSettings.jpeg_side_px is {self.jpeg_side_px}, it must be at least 1.")
        if self.bands is not None and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise UserError(f"DecodeSettings.bands is {list(self.bands)}: give one band or three, numbered from 1.")
        if self.range is not None and not (len(self.range) == 2 and self.range[0] < self.range[1]):
            raise UserError(f"DecodeSettings.range is {list(self.range)}: give the lower number, then the higher one.")
        if self.percentiles is not None and not (
            len(self.percentiles) == 2 and 0 <= self.percentiles[0] < self.percentiles[1] <= 100
        ):
            raise UserError(
                f"DecodeSettings.percentiles is {list(self.percentiles)}: give two between 0 and 100, such as 1, 99."
            )

    @property
    def to_measure(self) -> bool:
        """Whether the range is still to be measured."""
        return self.percentiles is not None and self.range is None


@dataclass(frozen=True)
class Decoding:
    """Say how image files become pixels; a dataset version and a bundle each carry theirs.

    Attributes:
        settings: which numbers become which gray levels, and how large JPEGs are decoded.
        max_pixels: images of more pixels are refused, before any of them is decoded.
        extras: of graftline, which read files of the data set that Pillow does not read.
    """

    settings: DecodeSettings = DecodeSettings()
    max_pixels: int = MAX_PIXELS
    extras: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        settings = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.settings).items()}
        return {"settings": settings, "max_pixels": self.max_pixels, "extras": list(self.extras)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any] | None) -> "Decoding":
        """Return the decoding that ``to_dict`` wrote; the plain one for what was written before there was any other.

        >>> Decoding.from_dict(Decoding(DecodeSettings(bands=(3, 2, 1))).to_dict()).settings.bands
        (3, 2, 1)
        >>> Decoding.from_dict(None) == Decoding()
        True
        """
        if fields is None:
            return cls()
        return cls(DecodeSettings(**fields["settings"]), fields["max_pixels"], tuple(fields["extras"]))

    def of_our_own(self) -> "Decoding":
        """Return the decoding of images that we made or have let in before, which a low limit is not to refuse."""
        return replace(self, max_pixels=max(self.max_pixels, MAX_PIXELS))

    def identity(self) -> dict[str, Any]:
        """Return what else than a file's content decides on its pixels; empty if nothing does.

        So the digests of data sets that need no settings are what they were before there were any.

        >>> Decoding(max_pixels=10).identity(), Decoding(DecodeSettings(range=(0, 4000))).identity()
        ({}, {'range': (0, 4000)})
        """
        values = {name: getattr(self.settings, name) for name in ("bands", "range", "jpeg_side_px")}
        return {name: value for name, value in values.items() if value is not None}


PLAIN = Decoding()  # pictures of 8 bits, and whatever else has a known scale


def to_nothing(_numbers: np.ndarray) -> None:
    """Look at nothing."""


def to_8_bits(numbers: np.ndarray, limits: tuple[float, float] | None) -> np.ndarray:
    """Scale (H, W) or (H, W, C) numbers of any type to gray levels, uint8.

    Args:
        numbers: integers, or floating point; what is no number counts as the lowest.
        limits: what becomes 0 and 255; None for the type's own: 16 bits, in floating point 0..1, 8 bits as they are.

    Raises:
        DecodeError: without ``limits``, numbers that have no known scale.
    """
    if numbers.dtype == np.uint8:
        return numbers
    if limits is None:
        return _by_type(numbers)
    low, high = limits
    planes = numbers.reshape(*numbers.shape[:2], -1)
    levels = np.empty(planes.shape, dtype=np.uint8)
    for channel in range(planes.shape[2]):  # one by one: floating point takes four times the room
        plane = planes[:, :, channel].astype(np.float32)
        np.clip((plane - np.float32(low)) * np.float32(255 / (high - low)), 0, 255, out=plane)
        levels[:, :, channel] = np.rint(np.nan_to_num(plane, copy=False))
    return levels.reshape(numbers.shape)


def _by_type(numbers: np.ndarray) -> np.ndarray:
    low, high = numbers.min(), numbers.max()
    scaled: np.ndarray
    if np.issubdtype(numbers.dtype, np.floating):
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise DecodeError("no_scale", f"floating-point pixels outside 0..1 ({low:,.6g} to {high:,.6g})")
        scaled = np.rint(numbers * 255)
    else:
        if low < 0:
            raise DecodeError("no_scale", f"negative values ({low:,} to {high:,})")
        if high > DEEPEST:
            raise DecodeError("no_scale", f"integer pixels outside 16 bits ({low:,} to {high:,})")
        scaled = (numbers.astype(np.uint32) + 128) // 257  # to the nearest: 65,535 / 257 = 255
    return scaled.astype(np.uint8)
