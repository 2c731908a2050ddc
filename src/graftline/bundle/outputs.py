"""What a network gives beside its logits, in the ONNX file of its bundle.

Letters: B batch, C channels, H, W height and width in px, K classes, E numbers of an embedding; h, w height and width
of the network's last map, D its channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from graftline.bundle.layout import EMBEDDING, FEATURES, LOGITS
from graftline.errors import UserError

# Largest difference of logits that the same operations may give, absolute, or relative where they exceed 1.
TIMM_TOLERANCE = 1e-5
HEAD_TOLERANCE = 1e-4  # likewise, where a mean is summed up in another order; a head of another kind is far from it


class WithParts(nn.Module):
    """A timm network that gives, beside the logits (B, K), what it computes them from.

    Args:
        network: the network.
        outputs: names of what it gives: of `LOGITS`, `EMBEDDING` (B, E), which its classifier is given, and `FEATURES`
            (B, D, h, w), the map of which that is the mean.
    """

    def __init__(self, network: Any, outputs: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._outputs = outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for images (B, C, H, W)."""
        features = self.network.forward_features(images)
        found = {LOGITS: self.network.forward_head(features)}
        found[EMBEDDING] = self.network.forward_head(features, pre_logits=True)
        if FEATURES in self._outputs:
            found[FEATURES] = _channels_first(self.network, features)
        return tuple(found[name] for name in self._outputs)


def _channels_first(network: Any, features: Tensor) -> Tensor:
    """Return a map (B, D, h, w), which some networks have as (B, h, w, D)."""
    return features.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else features


def find_outputs(
    network: nn.Module, batches: Sequence[Tensor], timm_name: str, num_classes: int
) -> dict[str, list[np.ndarray]]:
    """Return what a network gives for batches, by name: logits, and embeddings and features where it has them.

    Raises:
        UserError: the logits are not finite.
    """
    logits = [network(batch).numpy() for batch in batches]
    assert logits[0].shape[1] == num_classes, "one name for each of the network's outputs"
    _require_finite(timm_name, logits)
    found = {LOGITS: logits}
    embeddings = _embed(network, batches, logits)
    if embeddings is not None:
        found[EMBEDDING] = embeddings
        if (features := _features(network, batches, logits)) is not None:
            found[FEATURES] = features
    return found


def _features(network: Any, batches: Sequence[Tensor], logits: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """Return the last maps, each (B, D, h, w); None where the logits are not the mean of a map times weights."""
    classifier = _classifier(network)
    if not isinstance(classifier, nn.Linear) or class_weights(network) is None:
        return None
    found = [network.forward_features(batch) for batch in batches]
    if not isinstance(found[0], Tensor) or found[0].ndim != 4:
        return None
    maps = [_channels_first(network, features) for features in found]
    if maps[0].shape[1] != classifier.in_features or maps[0].shape[2] * maps[0].shape[3] == 1:
        return None
    whole = all(
        np.allclose(classifier(one.mean(dim=(2, 3))).numpy(), expected, rtol=HEAD_TOLERANCE, atol=HEAD_TOLERANCE)
        for one, expected in zip(maps, logits, strict=True)
    )
    return [one.numpy() for one in maps] if whole else None


def _classifier(network: Any) -> object:
    find = getattr(network, "get_classifier", None)
    return None if find is None else find()


def class_weights(network: Any) -> str | None:
    """Return the name of the classifier's weights (K, D); None where they have none."""
    weights = getattr(_classifier(network), "weight", None)
    return next((name for name, one in network.named_parameters() if one is weights), None)


def _embed(network: nn.Module, batches: Sequence[Tensor], logits: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """Return the embeddings, each (B, E); None where timm's division of the network does not give them.

    That is so for networks without ``forward_features`` and ``forward_head``, and for those whose parts together give
    other logits than the whole.
    """
    with_embedding = WithParts(network, (LOGITS, EMBEDDING))
    try:
        found = [with_embedding(batch) for batch in batches]
        whole = all(
            np.allclose(actual.numpy(), expected, atol=TIMM_TOLERANCE)
            for (actual, _), expected in zip(found, logits, strict=True)
        )
    except Exception:  # whatever a network's own code raises that is not divided as timm's usually are
        return None
    return [embedding.numpy() for _, embedding in found] if whole and found[0][1].ndim == 2 else None


def _require_finite(timm_name: str, batches: Sequence[np.ndarray]) -> None:
    if not all(np.isfinite(logits).all() for logits in batches):
        raise UserError(f"The outputs of '{timm_name}' are not finite, its training diverged: lower the learning rate.")
