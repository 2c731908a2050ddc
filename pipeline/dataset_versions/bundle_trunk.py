"""A trained bundle as a trunk and its head: what the head is given for images is computed once and kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from graftline.backbones.backbone import Graft
from graftline.backbones.weights import Weights
from graftline.bundle.predictor import Predictor
from graftline.bundle.soup import load_networks
from graftline.data.version import DatasetVersion
from graftline.evaluation.predictions import Predictions, predict_split
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.features.cut import UncuttableError
from graftline.pipeline.dataset_versions.head_activations import activate
from graftline.training.head_trunk import HeadTrunk
from graftline.training.setup import PassSetup


@dataclass(frozen=True)
class BundleTrunk:
    """A bundle's network, and what its head is given for the images of the version that it was trained on.

    Where only its head was trained, that is in the cache already.

    Attributes:
        predictor: of the bundle.
        network: of the bundle, in torch.
        version: that it was trained on.
        trunk: all below the head; None where the network cannot be cut there.
        why: it cannot, as a part of a sentence, or empty.
    """

    predictor: Predictor
    network: nn.Module
    version: DatasetVersion
    trunk: HeadTrunk | None
    why: str = ""

    @classmethod
    def of(
        cls, predictor: Predictor, directory: Path, version: DatasetVersion, features: Features, execution: Execution
    ) -> "BundleTrunk":
        """Load the network of the bundle in a directory, and cut it below its head."""
        (network,) = load_networks([directory])
        arguments = predictor.card.get("arguments", {})
        graft = Graft(network, predictor.preprocessing, Weights("file", str(directory)), arguments)
        try:
            trunk = HeadTrunk.of(PassSetup(graft, version, features, execution), "it is trained")
        except UncuttableError as error:
            return cls(predictor, network, version, None, str(error))
        return cls(predictor, network, version, trunk)

    def activations(self, split: str) -> np.ndarray | None:
        """Return what the head is given for the images of a split, (N, E); None where the network cannot be cut."""
        if self.trunk is None:
            return None
        setup = self.trunk.setup
        if split == "test":  # as a training keeps those by which it scores its head
            setup = replace(setup, features=replace(setup.features, precision="float32"))
        return activate(replace(self.trunk, setup=setup), split).activations

    def predictions(self, split: str, activations: np.ndarray | None) -> Predictions:
        """Return what the model gives for the images of a split, by what its head is given for them where known."""
        known = None if activations is None else self._head(activations)
        return predict_split(self.predictor, self.version, split, known_logits=known)

    def answer(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """Return logits (N, K) for images (H, W, 3) uint8, and what the head is given, (N, E)."""
        if self.trunk is None:
            return self.predictor.logits(images), None
        activations = self.trunk.embed(images)
        return self._head(activations), activations

    def _head(self, activations: np.ndarray) -> np.ndarray:
        assert self.trunk is not None
        with torch.inference_mode():
            logits: np.ndarray = self.trunk.parts.tail.eval()(torch.from_numpy(activations).float()).numpy()
        return self.predictor.calibration.apply(logits)
