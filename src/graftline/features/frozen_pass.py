"""The one pass of the frozen trunk over images.

Letters: B batch, F numbers per image that the trunk gives.
"""

import copy
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graftline.augment.draw import Draw, Transform
from graftline.data.loaders import ImageDataset
from graftline.data.version import Samples
from graftline.features.engine import Batches, Engine


@dataclass(frozen=True)
class ActivationRequest:
    """A matrix of activations that is wanted.

    Attributes:
        samples: the images.
        transform: makes the trunk's input of them.
        view: the epoch of the draws.
        key: all that the activations depend on, beside the content of each image (`trunk_key`, `view_key`).
    """

    samples: Samples
    transform: Transform
    view: int
    key: dict[str, Any]


def content_draw(sha256: str, view: int) -> Draw:
    """Return the draw that makes a view of an image: it depends on what the image is, not on where it stands.

    So an image keeps its views, and its activations, when others come or go.

    >>> content_draw("00000000000000ff" + 48 * "0", view=2)
    Draw(epoch=2, index=255)
    """
    return Draw(view, int(sha256[:16], 16))


class _ByContent:
    """A transform that is given the draws of `content_draw` instead of those by position.

    Args:
        transform: of its own for each thread, as it may draw lots.
        sha256: of each image.
    """

    def __init__(self, transform: Transform, sha256: Sequence[str]) -> None:
        self._transform = copy.deepcopy(transform)
        self._sha256 = sha256

    def __call__(self, image: np.ndarray, draw: Draw) -> np.ndarray:
        """Return the network's input (C, h, w) float32 for an image (H, W, 3) uint8."""
        return self._transform(image, content_draw(self._sha256[draw.index], draw.epoch))


class ImageBatcher(threading.local):
    """Decodes and transforms images; each thread has a transform of its own."""

    def __init__(self, request: ActivationRequest) -> None:
        self.request = request
        self._images = ImageDataset(request.samples, _ByContent(request.transform, request.samples.sha256))
        self._view = request.view

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Return the images (B, C, H, W) of some rows."""
        return torch.from_numpy(np.stack([self._images[Draw(self._view, row)]["image"] for row in rows]))


def run(engine: Engine, batches: Batches) -> Iterator[np.ndarray]:
    """Return the activations (B, F) float32 of each batch of rows, in order.

    A few batches ahead of what was asked for are taken and worked on; the rest is left when nobody asks any more.
    """
    if engine.run_all is not None:
        yield from engine.run_all(batches)
        return
    if (cv2 := sys.modules.get("cv2")) is not None:
        cv2.setNumThreads(0)  # our threads take all cores already
    waiting = iter(batches)
    running: deque[Future[np.ndarray]] = deque()

    def compute(images: ImageBatcher, rows: Sequence[int]) -> np.ndarray:
        return engine.run(images(rows))

    with ThreadPoolExecutor(engine.callers) as pool:
        try:
            while True:
                while len(running) < 2 * engine.callers and (batch := next(waiting, None)) is not None:
                    running.append(pool.submit(compute, *batch))
                if not running:
                    return
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
