"""How far two samples of images lie apart, and how far samples of the same images do by chance.

A distance is computed from signed weights of images: 1 / M for each of the reference, -1 / N for each of the window.
Resamples of the reference against itself are other weights of the same images, so that thousands of them are a matrix
product away.

Letters: M images of the reference, N of the window, R rows (images of both), B resamples, D numbers of an embedding, K
classes.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.spatial.distance import cdist

Floats: TypeAlias = npt.NDArray[np.float32]
Distance: TypeAlias = Callable[[Floats], Floats]
"""Takes weights (B, R), each row of which sums to 0; returns (B,) distances, at least 0."""

CHUNK = 1_024  # resamples at a time
DIGITS = 5  # of shares: equal ones are equal, whatever the order of the sum


def energy_distance(embeddings: Floats, reference: int) -> Distance:
    """Return the energy distance of embeddings, as a share of the mean distance of two images of the reference.

    It is 0 for the same distribution only, has no bandwidth to choose, and is the maximum mean discrepancy of a kernel
    (Székely and Rizzo 2013, J. Stat. Plan. Inference 143(8); Sejdinovic et al. 2013, arXiv 1207.6076; Gretton et al.
    2012, JMLR 13).

    Args:
        embeddings: (R, D).
        reference: how many rows, the first, are the reference's.
    """
    apart = cdist(embeddings, embeddings).astype(np.float32)  # (R, R)
    usual = float(apart[:reference, :reference].sum()) / max(1, reference * (reference - 1))
    usual = usual if usual > 0 else 1.0  # all of the reference are the same, and whatever differs is far away

    def distance(weights: Floats) -> Floats:
        squares = -np.einsum("br,br->b", weights @ apart, weights)
        scaled: Floats = np.maximum(squares, 0) / np.float32(2 * usual)
        return scaled

    return distance


def share_distance(classes: npt.NDArray[np.integer]) -> Distance:
    """Return the Euclidean distance of the shares of classes (R,), over the square root of 2.

    It is the share of images that have moved where all of them have moved from one class to one other. Chance makes
    squared differences as large in resamples of the reference as in fresh samples, on average. It makes absolute ones
    (the total variation) smaller there: the reference lacks some rare classes, and then all its resamples do.
    """
    rows = len(classes)
    one_hot = sparse.csr_matrix((np.ones(rows, np.float32), (np.arange(rows), classes)))  # (R, K)

    def distance(weights: Floats) -> Floats:
        lengths: Floats = np.sqrt(np.square(weights @ one_hot).sum(axis=1, dtype=np.float64) / 2)
        return np.round(lengths, DIGITS).astype(np.float32)

    return distance


def largest_gap(values: npt.NDArray[np.floating], reference: int) -> Distance:
    """Return the Kolmogorov-Smirnov distance of numbers (R,): the largest difference of their distribution functions.

    Rabanser et al. 2019, arXiv 1810.11953, take it for what a network answers. Differences are taken at the numbers of
    the reference, since its resamples have no others: a window would have more places for a large one. They are taken
    just below a number, too, that the reference has more than once (a size of images): a window may hold others there.

    Args:
        values: (R,).
        reference: how many of them, the first, are the reference's.
    """
    order = np.argsort(values, kind="stable")
    different, ends = np.unique(values[order][::-1], return_index=True)
    ends = len(values) - 1 - ends  # the last of equal ones
    known, times = np.unique(values[:reference], return_counts=True)
    taken = np.isin(different, known)
    taken[:-1] |= np.isin(different[1:], known[times > 1])
    places = ends[taken]

    def distance(weights: Floats) -> Floats:
        if len(different) == 1:  # all are equal
            return np.zeros(len(weights), np.float32)
        gaps: Floats = np.abs(np.cumsum(weights[:, order], axis=1, dtype=np.float64)[:, places]).max(axis=1)
        return np.round(gaps, DIGITS).astype(np.float32)

    return distance


def observed_weights(reference: int, window: int) -> Floats:
    """Return the weights (1, M + N) of a reference of M images against a window of N."""
    return np.concatenate([np.full(reference, 1 / reference), np.full(window, -1 / window)]).astype(np.float32)[None]


def resampled_weights(groups: npt.NDArray[np.integer], window: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Draw a reference and a window, both from the reference, with replacement.

    Images of one group are drawn together: where a reference holds 40 images of one module, a window does not hold 40
    independent ones either. Both are drawn, as both are samples of what the model was trained on: a threshold never
    falls below what the reference itself is uncertain by, however large the window.

    Args:
        groups: (M,) numbers from 0 without a gap: equal where images belong together.
        window: N.
        resamples: B in total.
        seed: of the draws.

    Yields:
        (chunk, M) weights.
    """
    generator = np.random.default_rng(seed)
    sizes = np.bincount(groups)
    count = len(sizes)
    wider = np.sqrt(count / max(1, count - 1))  # resamples of G groups vary by (G - 1) / G of what fresh ones do
    drawn = max(1, round(window * count / len(groups)))
    for start in range(0, resamples, CHUNK):
        parts = []
        for number in (count, drawn):
            size = min(CHUNK, resamples - start)
            places = generator.integers(0, count, (size, number)) + count * np.arange(size)[:, None]
            times = np.bincount(places.ravel(), minlength=size * count).reshape(size, count)
            parts.append(times / (times @ sizes)[:, None])  # each image of a group as often as the group
        yield (wider * (parts[0] - parts[1]))[:, groups].astype(np.float32)
