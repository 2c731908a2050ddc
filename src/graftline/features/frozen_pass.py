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
from graftline.features.engine import Engine


@dataclass(frozen=True)
class ActivationRequest:
    """A matrix of activations that is wanted.

    Attributes:
        samples: the images.
        transform: makes the trunk's input of them.
        view: the epoch of the draws.
        key: all that the activations depend on.
    """

    samples: Samples
    transform: Transform
    view: int
    key: dict[str, Any]


class ImageBatcher(threading.local):
    """Decodes and transforms images; each thread has a transform of its own, as they may draw lots."""

    def __init__(self, job: ActivationRequest) -> None:
        self._images = ImageDataset(job.samples, copy.deepcopy(job.transform))
        self._view = job.view

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Return the images (B, C, H, W) of some rows."""
        return torch.from_numpy(np.stack([self._images[Draw(self._view, row)]["image"] for row in rows]))


def run(engine: Engine, decoder: ImageBatcher, batches: Sequence[range]) -> Iterator[np.ndarray]:
    """Return the activations (B, F) float32 of each batch of rows, in order.

    A few batches ahead of what was asked for are worked on; the rest is left when nobody asks any more.
    """
    if (cv2 := sys.modules.get("cv2")) is not None:
        cv2.setNumThreads(0)  # our threads take all cores already
    waiting = iter(batches)
    running: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(engine.callers) as pool:
        try:
            for _ in batches:
                while len(running) < 2 * engine.callers and (rows := next(waiting, None)) is not None:
                    running.append(pool.submit(lambda rows: engine.run(decoder(rows)), rows))
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
