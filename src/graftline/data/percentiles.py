"""Measure between which numbers the pixels of a data set lie."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd

from graftline.console import track
from graftline.data.decode import decode
from graftline.data.decoding import DecodeSettings, Decoding
from graftline.data.image_bytes import open_image
from graftline.errors import UserError
from graftline.execution import available_cores

logger = logging.getLogger(__name__)

MOST_IMAGES = 1000
NUMBERS_PER_IMAGE = 10_000


def with_range(decoding: Decoding, images: pd.DataFrame, before: DecodeSettings | None, workers: int) -> Decoding:
    """Return a decoding with the range that its settings ask for: measured once, and inherited from then on.

    Args:
        decoding: of a version that is to be written.
        images: its images (columns path, split and sha256); where none is for training, all of them are measured.
        before: the settings of the version that it grows from; None: there is none.
        workers: number of threads; 0 for one per core.

    Raises:
        UserError: as ``measure_range``.
    """
    settings = decoding.settings
    if not settings.to_measure:
        return decoding
    if before is not None and replace(before, range=None) == settings:
        logger.info(f"DecodeSettings.range is {_in_words(before.range)}, as the versions before have it.")
        return replace(decoding, settings=before)
    is_train = images["split"] == "train"
    training = images[is_train if is_train.any() else slice(None)].sort_values("sha256")
    limits = measure_range(training["path"].tolist(), decoding, workers)
    logger.info(f"DecodeSettings.range is {_in_words(limits)}, measured on training images.")
    return replace(decoding, settings=replace(settings, range=limits))


def _in_words(limits: tuple[float, float] | None) -> str:
    return "" if limits is None else f"{limits[0]:,.6g} to {limits[1]:,.6g}"


def measure_range(paths: Sequence[str], decoding: Decoding, workers: int) -> tuple[float, float]:
    """Return the range of numbers between the percentiles that the settings name.

    Every image counts the same, whatever its size; of many, as many as are enough are taken, evenly spread.

    Args:
        paths: training images that can be decoded, in an order that depends on what they are.
        decoding: its settings have percentiles and no range yet.
        workers: number of threads; 0 for one per core.

    Raises:
        UserError: no image has more than 8 bits, or all have one number only.
    """
    assert decoding.settings.percentiles is not None
    anything = replace(decoding, settings=replace(decoding.settings, range=(0.0, 1.0)))
    taken = [paths[place] for place in np.linspace(0, len(paths) - 1, min(MOST_IMAGES, len(paths))).astype(int)]
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        samples = track(pool.map(lambda path: _sample(path, anything), taken), "Measuring the range", len(taken))
        found = [numbers for numbers in samples if numbers.size]
    if not found:
        raise UserError("DecodeSettings.percentiles is set, but no training image has more than 8 bits: leave it out.")
    low, high = (float(limit) for limit in np.percentile(np.concatenate(found), decoding.settings.percentiles))
    if not low < high:
        raise UserError(
            f"DecodeSettings.percentiles finds nothing but {low:,.6g} in the training images: "
            "give DecodeSettings.range."
        )
    return low, high


def spread(numbers: np.ndarray) -> np.ndarray:
    """Return numbers of one image, evenly spread over it, as float64; what is not finite is left out."""
    flat = numbers.reshape(-1)
    values = flat[np.linspace(0, flat.size - 1, NUMBERS_PER_IMAGE).astype(int)].astype(np.float64)
    finite: np.ndarray = values[np.isfinite(values)]
    return finite


def _sample(path: str, decoding: Decoding) -> np.ndarray:
    """Return numbers of one image, evenly spread over it; none of one of 8 bits."""
    found: list[np.ndarray] = [np.empty(0)]

    def look(numbers: np.ndarray) -> None:
        if numbers.dtype != np.uint8:
            found.append(spread(numbers))

    with open_image(path) as file:
        decode(file, decoding, look)
    return found[-1]
