"""A candidate at work: its network, ready to give activations, and how fast it gives them.

Letters: N images, F numbers per image.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from graftline.backbones.layers import body_groups
from graftline.console import console
from graftline.data.decode import decode_rgb
from graftline.data.version import Samples
from graftline.features.cut import Cut, cut
from graftline.freezing.plan import FreezePlan, plan_from_depth
from graftline.search.candidates import Candidate
from graftline.training.forecast import time_parts
from graftline.training.setup import TrainingSetup
from graftline.training.training_source import open_plain

TIMED_IMAGES = 8  # decoded to learn how long that takes


@dataclass(frozen=True)
class PassSeconds:
    """How long an image takes in the frozen pass, predicted for any network from what one of them takes.

    Attributes:
        decode: to decode it, whatever the network.
        per_mac: for each multiply-add.
    """

    decode: float
    per_mac: float

    def of(self, candidate: Candidate) -> float:
        """Return it for a candidate.

        >>> from graftline.backbones.backbone import Backbone
        >>> PassSeconds(0.001, 1e-11).of(Candidate(Backbone("resnet18"), 224, 2e9, 0))
        0.021
        """
        return self.decode + self.per_mac * candidate.macs


@dataclass(frozen=True)
class Contestant:
    """A candidate whose network is built and cut below the head.

    Attributes:
        candidate: which one.
        setup: of a training of it.
        plan: everything below the head is frozen.
        parts: the network, cut.
    """

    candidate: Candidate
    setup: TrainingSetup
    plan: FreezePlan
    parts: Cut

    @classmethod
    def of(cls, candidate: Candidate, setup: TrainingSetup) -> "Contestant":
        """Build the network of a candidate.

        Args:
            candidate: which one.
            setup: of a training of another network on the same images.

        Raises:
            UncuttableError: its activations cannot be computed ahead.
            UserError: its weights do not fit.
        """
        graft = candidate.backbone.build(setup.version.class_names)
        plan = plan_from_depth(graft.network, len(body_groups(graft.network)), "scored by its head")
        plan.apply(graft.network)
        preprocessing = graft.preprocessing
        parts = cut(graft.network, plan.trainable, preprocessing.image_size, preprocessing.channels)
        return cls(candidate, replace(setup, graft=graft), plan, parts)

    def activations(self, samples: Samples) -> np.ndarray:
        """Return the activations (N, F) of images, from the cache or computed now; they stay there for the training.

        Raises:
            CacheFullError: there is no room for them.
        """
        with _quiet():
            kept = open_plain(self.setup, self.plan, self.parts, samples)
        return np.array(kept.array)

    def pass_seconds(self, samples: Samples) -> PassSeconds:
        """Predict how long an image takes in the frozen pass, from a few that are decoded and a few black ones."""
        preprocessing = self.setup.graft.preprocessing
        seconds = time_parts(self.parts, preprocessing.image_size, preprocessing.channels, self.setup.execution)
        return PassSeconds(self._decode_seconds(samples), seconds.engine / self.candidate.macs)

    def _decode_seconds(self, samples: Samples) -> float:
        """Return how long an image takes to be decoded, where all threads decode."""
        paths = samples.paths[:: max(1, len(samples.paths) // TIMED_IMAGES)][:TIMED_IMAGES]
        start = time.perf_counter()
        for path in paths:
            decode_rgb(path, samples.decoding)
        return (time.perf_counter() - start) / len(paths) / self.setup.execution.num_threads


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the cache says of each pass, which is of interest for one training and not for many scores."""
    logger = logging.getLogger("graftline.features")
    before = logger.level, console.quiet
    logger.setLevel(logging.WARNING)
    console.quiet = console.quiet or not console.is_terminal  # there, the bar is a line, too
    try:
        yield
    finally:
        console.quiet = before[1]
        logger.setLevel(before[0])


def take(samples: Samples, rows: np.ndarray) -> Samples:
    """Return some images of a split, in the order of the rows."""
    weights = None if samples.weights is None else samples.weights[rows]
    paths, sha256 = ([column[row] for row in rows.tolist()] for column in (samples.paths, samples.sha256))
    return Samples(paths, samples.labels[rows], weights, sha256, samples.decoding)
