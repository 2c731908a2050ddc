"""Make the network's input of an image when nothing is left to chance: resize, crop, normalize.

Equals ``timm.data.create_transform(..., is_training=False)`` to the last bit, with Pillow and numpy alone, so that a
serving container needs neither torch nor timm.

Letters: ``H``, ``W`` size of an image in px, ``h``, ``w`` size of the network's input in px, ``C`` its channels.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image, ImageOps

from graftline.errors import UserError

Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom in px

CropMode: TypeAlias = Literal["center", "squash", "border"]
CROP_MODES: tuple[str, ...] = get_args(CropMode)
MOST_SCALED = 8  # times the crop's pixels: of a longer image only what the crop keeps is resized
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalize an image as the weights' authors did; the names are those of timm's data config.

    Args:
        image_size: (h, w) of the network's input, px.
        mean: per channel, for values scaled to 0…1.
        std: per channel, for values scaled to 0…1.
        interpolation: one of ``INTERPOLATIONS``, always antialiased.
        crop_pct: share of the resized image's edge that the crop keeps, in (0, 1].
        crop_mode: ``center`` resizes the short edge and loses what lies outside the crop; ``squash`` resizes both
            edges, not keeping the aspect ratio; ``border`` resizes the long edge and fills up with the mean color.
        channels: 3, or 1 for networks that take gray images.

    Raises:
        UserError: a value that is not listed above.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    channels: int = 3

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"Preprocessing.interpolation is {self.interpolation!r}: use one of {', '.join(INTERPOLATIONS)}."
            )
        if self.crop_mode not in CROP_MODES:
            raise UserError(f"Preprocessing.crop_mode is {self.crop_mode!r}: use one of {', '.join(CROP_MODES)}.")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"Preprocessing.crop_pct is {self.crop_pct}, but must be above 0 and at most 1.")
        if min(self.image_size) < 1:
            raise UserError(f"Preprocessing.image_size is {self.image_size}, but both edges must be at least 1 px.")
        if self.channels not in (1, 3):
            raise UserError(f"Preprocessing.channels is {self.channels}, but images have 3, or 1 if gray.")
        if not len(self.mean) == len(self.std) == self.channels:
            raise UserError(
                f"Preprocessing.mean and Preprocessing.std need one value for each of the {self.channels} channels."
            )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the network's input (C, h, w) float32 for an (H, W, 3) uint8 image."""
        return self.normalize(self.frame(image))

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Return the part of an (H, W, 3) uint8 image that the network sees, as (h, w, C) uint8."""
        size = image.shape[0], image.shape[1]
        scaled_size = self._scaled_size(*size)
        if math.prod(scaled_size) > MOST_SCALED * math.prod(self.image_size) / self.crop_pct**2:
            return self.resample(image, self._center_box(size, scaled_size))
        picture = self._picture(image)
        if scaled_size != size:
            picture = picture.resize(scaled_size[::-1], self.filter)
        return self._array(self._center_crop(picture))

    def resample(self, image: np.ndarray, box: Box) -> np.ndarray:
        """Return ``box`` of an (H, W, 3) uint8 image stretched to the network's size, as (h, w, C) uint8.

        The filter is that of ``frame``, so that augmented images are exactly as sharp as those of the evaluation.
        """
        height, width = self.image_size
        return self._array(self._picture(image).resize((width, height), self.filter, box=box))

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Return an (h, w, C) uint8 image as (C, h, w) float32 with the mean taken off and divided by std."""
        height, width, _ = image.shape
        planes = np.empty((self.channels, height, width), dtype=np.float32)
        for channel in range(self.channels):
            np.take(self._normalized_levels[channel], image[..., channel], out=planes[channel])
        return planes

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """Return the preprocessing that ``to_dict`` wrote.

        >>> original = Preprocessing(image_size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> Preprocessing.from_dict(original.to_dict()) == original
        True
        """
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**values)

    @property
    def filter(self) -> Image.Resampling:
        """The filter by Pillow's name."""
        return Image.Resampling[self.interpolation.upper()]

    @cached_property
    def _normalized_levels(self) -> np.ndarray:
        """Return (C, 256) float32: each gray level's value, computed once and in torchvision's order of rounding."""
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        mean, std = (np.array(values, dtype=np.float32)[:, None] for values in (self.mean, self.std))
        table: np.ndarray = (levels - mean) / std
        return table

    def _picture(self, image: np.ndarray) -> Image.Image:
        picture = Image.fromarray(image)
        return picture if self.channels == 3 else picture.convert("L")

    def _array(self, picture: Image.Image) -> np.ndarray:
        return np.array(picture).reshape(picture.height, picture.width, self.channels)

    def _scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the resized image before the crop, px."""
        target_height, target_width = (math.floor(edge / self.crop_pct) for edge in self.image_size)
        if self.crop_mode == "squash":
            return target_height, target_width
        if self.crop_mode == "center" and target_height == target_width:
            # torchvision truncates the long edge where timm, below, rounds both: we follow each where it is in charge
            short, long = sorted((height, width))
            long = int(target_height * long / short)
            return (target_height, long) if height <= width else (long, target_height)
        ratios = height / target_height, width / target_width
        ratio = min(ratios) if self.crop_mode == "center" else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _center_box(self, size: tuple[int, int], scaled_size: tuple[int, int]) -> Box:
        """Return what ``_center_crop`` keeps of the resized image, in px of the image before it was resized.

        A strip of 10 x 30,000 px would be resized to 196 million pixels, for a crop of 50,000 of them.

        Args:
            size: (H, W) of the image.
            scaled_size: (height, width) of the resized image.
        """
        sides: list[float] = []
        for edge, scaled, target in zip(size, scaled_size, self.image_size, strict=True):
            start = round((scaled - target) / 2)
            sides += [max(0, start * edge / scaled), min(edge, (start + target) * edge / scaled)]
        top, bottom, left, right = sides
        return left, top, right, bottom

    def _center_crop(self, picture: Image.Image) -> Image.Image:
        height, width = self.image_size
        missing_width, missing_height = max(0, width - picture.width), max(0, height - picture.height)
        if missing_width or missing_height:
            left, top = missing_width // 2, missing_height // 2
            border = (left, top, missing_width - left, missing_height - top)
            picture = ImageOps.expand(picture, border, fill=self._border_color)
        top, left = round((picture.height - height) / 2), round((picture.width - width) / 2)
        return picture.crop((left, top, left + width, top + height))

    @property
    def _border_color(self) -> int | tuple[int, ...]:
        """Return the mean color for ``border``; others lack pixels by rounding only, and timm fills them black."""
        levels = tuple(round(255 * value) if self.crop_mode == "border" else 0 for value in self.mean)
        return levels if self.channels == 3 else levels[0]
