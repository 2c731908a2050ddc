"""Predictions as a value, made up from probabilities."""

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from graftline.evaluation.predictions import Predictions


def predictions_of(
    probabilities: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str] | None = None,
    weights: np.ndarray | None = None,
    paths: Sequence[str] | None = None,
) -> Predictions:
    """Return predictions whose probabilities are these, in double precision."""
    num_images, num_classes = probabilities.shape
    with np.errstate(divide="ignore"):  # the logit of a probability of 0
        logits = np.log(probabilities.astype(np.float64))
    return Predictions(
        paths=list(paths or (f"/{number}.png" for number in range(num_images))),
        logits=logits,
        labels=labels,
        weights=weights,
        sha256=[f"{number:064x}" for number in range(num_images)],
        class_names=tuple(class_names or (f"class {number}" for number in range(num_classes))),
        split="test",
        dataset="made up",
        split_digest="0123456789abcdef",
        bundle_digest="fedcba9876543210",
    )


def draw_predictions(num_images: int, class_names: Sequence[str], seed: int, spread: float = 2) -> Predictions:
    """Return predictions whose probabilities are right; the more their logits are spread, the surer they are."""
    generator = np.random.default_rng(seed)
    probabilities = softmax(generator.normal(0, spread, (num_images, len(class_names))), axis=1)
    labels = (probabilities.cumsum(axis=1) > generator.random((num_images, 1))).argmax(axis=1)
    return predictions_of(probabilities.astype(np.float32), labels, class_names)
