"""What lies below the head of a network: the activations that a head is fitted to, computed once and kept.

Letters: N images, F numbers per image.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from graftline.backbones.layers import body_groups
from graftline.console import console
from graftline.data.version import Samples
from graftline.features.cut import Cut, cut
from graftline.features.trace import mode_kept
from graftline.freezing.plan import FreezePlan, plan_from_depth
from graftline.training.activations import open_plain
from graftline.training.setup import PassSetup

BATCH = 32  # images that are embedded at a time


@dataclass(frozen=True)
class HeadTrunk:
    """A network that is cut below its head.

    Attributes:
        setup: the network and how its frozen pass runs.
        plan: everything below the head is frozen.
        parts: the network, cut.
    """

    setup: PassSetup
    plan: FreezePlan
    parts: Cut

    @classmethod
    def of(cls, setup: PassSetup, reason: str) -> "HeadTrunk":
        """Cut a network below its head.

        Args:
            setup: has the network.
            reason: why the rest is frozen, as a part of a sentence.

        Raises:
            UncuttableError: its activations cannot be computed ahead.
        """
        network, preprocessing = setup.graft.network, setup.graft.preprocessing
        plan = plan_from_depth(network, len(body_groups(network)), reason)
        plan.apply(network)
        return cls(setup, plan, cut(network, plan.trainable, preprocessing.image_size, preprocessing.channels))

    def activations(self, samples: Samples) -> np.ndarray:
        """Return the activations (N, F) of images, from the cache or computed now; they stay there for a training.

        Raises:
            CacheFullError: there is no room for them.
        """
        return np.array(open_plain(self.setup, self.plan, self.parts, samples).array)

    def embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the activations (N, F) of a few images (H, W, 3) uint8 that are no files; nothing of them is kept."""
        preprocessing, trunk = self.setup.graft.preprocessing, self.parts.trunk
        with mode_kept(trunk), torch.inference_mode():
            trunk.eval()
            parts = [
                trunk(torch.from_numpy(np.stack([preprocessing.normalize(preprocessing.frame(one)) for one in some])))
                for some in (images[start : start + BATCH] for start in range(0, len(images), BATCH))
            ]
            return np.concatenate([part.numpy() for part in parts])

    def activations_quietly(self, samples: Samples) -> np.ndarray:
        """Return the activations without a word on the pass, which is of no interest where there are many of them."""
        with _quiet():
            return self.activations(samples)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the cache says of each pass."""
    logger = logging.getLogger("graftline.features")
    before = logger.level, console.quiet
    logger.setLevel(logging.WARNING)
    console.quiet = console.quiet or not console.is_terminal  # there, the bar is a line, too
    try:
        yield
    finally:
        console.quiet = before[1]
        logger.setLevel(before[0])
