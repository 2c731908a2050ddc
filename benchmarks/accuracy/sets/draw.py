"""Draw splits, stratified by label."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt


def draw_splits(labels: npt.NDArray[np.integer], shares: Mapping[str, float], seed: int = 0) -> list[str]:
    """Return the split of each image: each class is shuffled and cut at the shares, which add up to 1."""
    generator = np.random.default_rng(seed)
    edges = np.cumsum(list(shares.values()))[:-1]
    splits = np.empty(len(labels), dtype=object)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        parts = np.split(rows, np.round(edges * len(rows)).astype(int))
        for split, part in zip(shares, parts, strict=True):
            splits[part] = split
    return splits.tolist()


def draw_some(labels: npt.NDArray[np.integer], count: int, seed: int = 0) -> npt.NDArray[np.integer]:
    """Return the indices, in order, of ``count`` images, as many of each class."""
    generator = np.random.default_rng(seed)
    classes = np.unique(labels)
    chosen = [generator.permutation(np.flatnonzero(labels == label))[: count // len(classes)] for label in classes]
    return np.sort(np.concatenate(chosen))
