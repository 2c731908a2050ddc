"""A candidate at work: its network, ready to give activations, and how fast it gives them.

Letters: N images, F numbers per image.
"""

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch

from graftline.data.version import Samples
from graftline.freezing.depth import PASSES_PER_STEP
from graftline.search.candidates import Candidate, too_large
from graftline.training.forecast import decode_seconds, time_parts
from graftline.training.head_trunk import HeadTrunk
from graftline.training.setup import TrainingSetup


@dataclass(frozen=True)
class PassSeconds:
    """How long an image takes in the frozen pass, predicted for any network from what one of them takes.

    Attributes:
        decode: to decode it, whatever the network.
        per_mac: for each multiply-add, where a candidate was not measured itself.
        beside: whether images are decoded while the network computes, as for a GPU.
    """

    decode: float
    per_mac: float
    beside: bool = False

    def of(self, candidate: Candidate) -> float:
        """Return it for a candidate.

        >>> from graftline.backbones.backbone import Backbone
        >>> PassSeconds(0.001, 1e-11).of(Candidate(Backbone("resnet18"), 224, 2e9, 0))
        0.021
        >>> measured = Candidate(Backbone("resnet18"), 224, 2e9, 0, seconds=0.003)
        >>> PassSeconds(0.001, 1e-11).of(measured), PassSeconds(0.001, 1e-11, beside=True).of(measured)
        (0.004, 0.003)
        """
        return self._with_decoding(self._computing(candidate))

    def of_step(self, candidate: Candidate) -> float:
        """Return how long an image takes to be decoded once and to train the whole of a candidate.

        >>> from graftline.backbones.backbone import Backbone
        >>> round(PassSeconds(0.001, 1e-11).of_step(Candidate(Backbone("resnet18"), 224, 2e9, 0)), 6)
        0.101
        """
        return self._with_decoding(PASSES_PER_STEP * self._computing(candidate))

    def _computing(self, candidate: Candidate) -> float:
        return self.per_mac * candidate.macs if candidate.seconds is None else candidate.seconds

    def _with_decoding(self, seconds: float) -> float:
        return max(self.decode, seconds) if self.beside else self.decode + seconds


@dataclass(frozen=True)
class BuiltCandidate:
    """A candidate whose network is built and cut below the head.

    Attributes:
        candidate: which one.
        trunk: what lies below its head.
    """

    candidate: Candidate
    trunk: HeadTrunk

    @classmethod
    def of(cls, candidate: Candidate, setup: TrainingSetup) -> "BuiltCandidate":
        """Build the network of a candidate.

        Args:
            candidate: which one.
            setup: of a training of another network on the same images.

        Raises:
            UncuttableError: its activations cannot be computed ahead.
            UserError: its weights do not fit.
        """
        graft = candidate.backbone.build(setup.version.class_names)
        return cls(candidate, HeadTrunk.of(replace(setup, graft=graft), "scored by its head"))

    def activations(self, samples: Samples) -> np.ndarray:
        """Return the activations (N, F) of images, from the cache or computed now; they stay there for the training.

        Raises:
            CacheFullError: there is no room for them.
            UserError: the pass takes more memory than the GPU has.
        """
        with suppress(torch.OutOfMemoryError):  # kept as a cause, it would keep what lies on the GPU
            return self.trunk.activations_quietly(samples)
        raise too_large(self.candidate.backbone, self.candidate.side)

    def pass_seconds(self, samples: Samples) -> PassSeconds:
        """Predict how long an image takes in the frozen pass, from a few that are decoded and a few black ones."""
        setup, seconds = self.trunk.setup, self.candidate.seconds
        preprocessing, execution = setup.graft.preprocessing, setup.execution
        if seconds is None:
            parts = self.trunk.parts
            seconds = time_parts(parts, preprocessing.image_size, preprocessing.channels, execution).engine
        decode = decode_seconds(samples, execution)
        return PassSeconds(decode, seconds / self.candidate.macs, beside=execution.is_cuda)
