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


class PreparedTransform(Transform, Protocol):
    """A transform in two steps: the first one leaves nothing to chance, so that what it gives may be kept."""

    @property
    def preparation(self) -> str:
        """What the first step depends on: two transforms of which it is the same prepare the same."""
        ...

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return what ``finish`` needs of an image (H, W, 3) uint8, likewise uint8 and not larger."""
        ...

    def finish(self, picture: np.ndarray, draw: Draw) -> np.ndarray:
        """Return the network's input (C, h, w) float32, normalized, for what ``prepare`` gave."""
        ...

    def prepared_size(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return the shape of what ``prepare`` gives for an image of (H, W) px."""
        ...


class InTwoSteps:
    """A transform that does at once what its two steps do.

    Args:
        transform: with the steps.
    """

    def __init__(self, transform: PreparedTransform) -> None:
        self._transform = transform

    def __call__(self, image: np.ndarray, draw: Draw) -> np.ndarray:
        """Return the network's input (C, h, w) float32 for an image (H, W, 3) uint8."""
        return self._transform.finish(self._transform.prepare(image), draw)
