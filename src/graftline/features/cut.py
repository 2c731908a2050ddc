"""Cutting a network into a frozen trunk and a trained tail: ``tail(trunk(x)) == network(x)``.

Letters: B batch, C channels, H height, W width, F features, K classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5  # absolute, on logits in float32


class Trunk(nn.Module):
    """Everything below the classifier: images (B, C, H, W) → features (B, F)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return what the classifier is given."""
        features: Tensor = self.network.forward_head(self.network.forward_features(images), pre_logits=True)
        return features


def cut_head(network: Any, image_size: tuple[int, int], channels: int = 3) -> tuple[Trunk, nn.Module] | None:
    """Cut a timm network below its classifier.

    The tail holds the network's own classifier, so that training the tail trains the network.

    Args:
        network: a timm network, with ``forward_features``, ``forward_head`` and ``get_classifier``.
        image_size: (H, W) in pixels.
        channels: C.

    Returns:
        Trunk and tail, or None where the network is not just a classifier on top of features.
    """
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Module):  # two classifiers: DeiT's distilled networks
        return None
    trunk = Trunk(network)
    tail = nn.Sequential(nn.Dropout(getattr(network, "drop_rate", 0.0)), classifier)
    was_training = network.training
    network.eval()
    tail.eval()
    with torch.inference_mode():
        images = torch.randn(2, channels, *image_size, generator=torch.Generator().manual_seed(0))
        features = trunk(images)
        same = features.ndim == 2 and torch.allclose(tail(features), network(images), rtol=0, atol=TOLERANCE)
    network.train(was_training)
    return (trunk, tail) if same else None
