"""What may happen to images between training and use, each in a mild and in a strong form.

Letters: H, W height and width in px.
"""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

Shift = Callable[[Image.Image], Image.Image]
SMALLEST_SIDE = 64  # px; smaller images are enlarged first: a blur of 8 px digits would be of no pixel


def blur(share: float, image: Image.Image) -> Image.Image:
    """Blur by a Gaussian, whose standard deviation is a share of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def darken(factor: float, image: Image.Image) -> Image.Image:
    """Multiply all gray levels."""
    return image.point(lambda level: round(factor * level))


def rotate(degrees: float, image: Image.Image) -> Image.Image:
    """Rotate, and fill the corners with the image's mean."""
    mean = tuple(int(level) for level in np.asarray(image).reshape(-1, len(image.getbands())).mean(axis=0))
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=mean)


def compress(quality: int, image: Image.Image) -> Image.Image:
    """Save as JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


SHIFTS: dict[str, Shift] = {
    "none": lambda image: image,
    "blurred, 0.5 % of the side": partial(blur, 0.005),
    "blurred, 1.5 % of the side": partial(blur, 0.015),
    "darkened to 80 %": partial(darken, 0.8),
    "darkened to 50 %": partial(darken, 0.5),
    "rotated by 5 degrees": partial(rotate, 5.0),
    "rotated by 20 degrees": partial(rotate, 20.0),
    "JPEG of quality 30": partial(compress, 30),
    "JPEG of quality 8": partial(compress, 8),
}


def to_image(pixels: np.ndarray) -> Image.Image:
    """Return an image of pixels (H, W) or (H, W, 3), in color, and not too small for a shift to be one."""
    image = Image.fromarray(pixels).convert("RGB")
    scale = SMALLEST_SIDE / min(image.size)
    if scale <= 1:
        return image
    return image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BILINEAR)
