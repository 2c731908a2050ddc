"""Predictions as a value, made up from probabilities."""

from collections.abc import Sequence

import numpy as np

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
