"""Images as they are given to a predictor, and as they are made ready ahead of the network."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from graftline.data.decode import DecodeError, Decoding, decode_rgb
from graftline.errors import UnreachableError, UserError

ImageLike: TypeAlias = Path | str | bytes | np.ndarray
"""A file, an encoded file's bytes, or uint8 pixels, (H, W, 3) RGB or (H, W) gray."""

T = TypeVar("T")


def prepare_ahead(
    images: Iterable[ImageLike], prepare: Callable[[ImageLike], T], threads: int, ahead: int
) -> Generator[tuple[str, T | str], None, None]:
    """Yield each image's name and what is prepared of it, or why it cannot be read.

    Threads work on the next ``ahead`` images while the caller is busy with those it has.
    """

    def work(image: ImageLike) -> T | str:
        try:
            return prepare(image)
        except UnreachableError:
            raise  # of this image nobody knows anything
        except DecodeError as error:
            return error.reason
        except ValueError as error:
            return str(error)

    pending: deque[tuple[str, Future[T | str]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for index, image in enumerate(images):
            pending.append((_name(image, index), pool.submit(work, image)))
            if len(pending) > ahead:
                name, item = pending.popleft()
                yield name, item.result()
        for name, item in pending:
            yield name, item.result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_pixels(image: ImageLike, decoding: Decoding) -> np.ndarray:
    """Return an image as (H, W, 3) uint8.

    Raises:
        ValueError: it cannot be read; ``DecodeError`` for a file.
    """
    if not isinstance(image, np.ndarray):
        return decode_rgb(image, decoding)
    if image.dtype == np.uint8 and image.ndim == 2 and image.size:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    raise ValueError(f"an array of {image.dtype} {image.shape} is neither uint8 (H, W, 3) nor uint8 (H, W)")


def _name(image: ImageLike, index: int) -> str:
    return str(image) if isinstance(image, Path | str) else f"Image number {index}, from 0,"


def refuse_unreadable(flaws: Mapping[int, tuple[str, str]]) -> None:
    """Make sure that all images of a batch can be read.

    Args:
        flaws: name of each unreadable image and reason, by row.

    Raises:
        UserError: one cannot be read; the first is named.
    """
    if flaws:
        name, reason = next(iter(flaws.values()))
        raise UserError(f"{name} cannot be read ({reason}): repair it or leave it out.")
