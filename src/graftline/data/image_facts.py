"""What can be said of an image without a network: how bright and how sharp it is, its shape, and a thumbnail.

Letters: N images, T pixels of a thumbnail's edge.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from graftline.data.decode import decode_rgb
from graftline.data.decoding import Decoding
from graftline.execution import available_cores

THUMBNAIL = 24  # T; 5 kB per image
LONGEST_SIDE = 256  # px that facts are found at, so that large and small images can be compared
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's gray
FACTS = ("brightness", "contrast", "sharpness", "aspect", "megapixels")
_AT_ONCE = 16  # images per task


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """What was found of N images.

    Attributes:
        table: a row per image, with the columns brightness and contrast (mean and standard deviation of the gray
            levels, 0 to 1), sharpness (standard deviation of the Laplacian, relative to the contrast: Pech-Pacheco et
            al. 2000, ICPR, with the contrast taken out so that a dim image is not called blurred), aspect (width to
            height) and megapixels.
        thumbnails: (N, 3 T T) float32; less its mean, and of length 1: the product of two is their correlation.
    """

    table: pd.DataFrame
    thumbnails: npt.NDArray[np.float32]


def find_facts(
    paths: Sequence[str], decoding: Decoding, workers: int = 0, on_progress: Callable[[int], None] | None = None
) -> ImageFacts:
    """Look at images, in parallel.

    Args:
        paths: N files.
        decoding: how they become pixels.
        workers: threads; 0: one per core.
        on_progress: gets the number of images just looked at.
    """
    tasks = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
    rows: list[tuple[float, ...]] = []
    thumbnails = np.empty((len(paths), 3 * THUMBNAIL**2), np.float32)
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        for found in pool.map(lambda task: [look_at(decode_rgb(path, decoding)) for path in task], tasks):
            for facts, thumbnail in found:
                thumbnails[len(rows)] = thumbnail
                rows.append(facts)
            if on_progress is not None:
                on_progress(len(found))
    return ImageFacts(pd.DataFrame(rows, columns=list(FACTS)), thumbnails)


def look_at(image: np.ndarray) -> tuple[tuple[float, ...], npt.NDArray[np.float32]]:
    """Return the facts of an image (H, W, 3) uint8, in the order of ``FACTS``, and its thumbnail (3 T T,)."""
    height, width = image.shape[:2]
    shrink = max(1.0, max(height, width) / LONGEST_SIDE)
    size = max(3, round(width / shrink)), max(3, round(height / shrink))
    picture = Image.fromarray(image)
    gray = np.asarray(picture.resize(size, Image.Resampling.BOX), np.float32) @ LUMA / 255
    contrast = float(gray.std())
    center = gray[1:-1, 1:-1]
    laplacian = 4 * center - gray[:-2, 1:-1] - gray[2:, 1:-1] - gray[1:-1, :-2] - gray[1:-1, 2:]
    sharpness = float(laplacian.std()) / contrast if contrast > 0 else 0.0
    facts = (float(gray.mean()), contrast, sharpness, width / height, width * height / 1e6)
    return facts, thumbnail_of(picture)


def thumbnail_of(picture: Image.Image) -> npt.NDArray[np.float32]:
    """Return a picture's thumbnail (3 T T,): less its mean, and of length 1, or 0 where all is of one gray."""
    small = np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32).ravel()
    small -= small.mean()
    length = float(np.linalg.norm(small))
    return small / length if length > 1e-3 else np.zeros_like(small)
