"""Name what one augmented version of an image depends on."""

from typing import NamedTuple, Protocol

import numpy as np


class Draw(NamedTuple):
    """Name one augmented version of one image: the same draw (with the same seed) gives the same augmentation.

    It travels from the sampler to the workers, so that an augmentation depends neither on the number of workers or
    processes nor on the order in which they work, and workers that outlive an epoch need not be told of the next.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # position of the image in its split; hides tuple.index, which nobody needs


class Transform(Protocol):
    """Turn a decoded image into what the network takes."""

    def __call__(self, image: np.ndarray, draw: Draw) -> np.ndarray:
        """Return the network's input.

        Args:
            image: (H, W, 3) uint8, RGB.
            draw: which version of the image is wanted.

        Returns:
            (C, h, w) float32, normalized.
        """
        ...
