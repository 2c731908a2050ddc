"""Digests of images' contents: which images are the same, and where each stands in a list of millions.

Of a SHA-256 the first 16 bytes are kept, as two unsigned numbers: among 10^9 images the chance that two differ and yet
share them is 10^-21.

Letters: N images, U distinct ones, M images that are looked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NOWHERE = -1  # the position of an image that is not there


@dataclass(frozen=True)
class Digests:
    """Distinct digests with an index.

    Attributes:
        values: (2, U) uint64, the first and the second 8 bytes of each digest.
        order: (U,) integers, positions sorted by the first 8 bytes.
    """

    values: np.ndarray
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def find(self, values: np.ndarray) -> np.ndarray:
        """Return the position of each of the digests (2, M), ``NOWHERE`` for those that are not there, (M,) int64."""
        if np.array_equal(self.values, values):
            return np.arange(len(self))
        found = np.full(values.shape[1], NOWHERE)
        left = np.argsort(values[0])  # ten times as fast as to search in a random order, which misses the CPU's caches
        place = np.searchsorted(self.values[0], values[0, left], sorter=self.order)
        while len(left) > 0:  # a second time only where different digests share their first 8 bytes
            inside = place < len(self)
            left, place = left[inside], place[inside]
            position = self.order[place].astype(np.int64)
            similar = self.values[0, position] == values[0, left]
            same = similar & (self.values[1, position] == values[1, left])
            found[left[same]] = position[same]
            left, place = left[similar & ~same], place[similar & ~same] + 1
        return found


def read_digests(sha256: Sequence[str]) -> np.ndarray:
    """Return digests that are given in hex as numbers, (2, N) uint64.

    >>> read_digests(["00000000000000010000000000000002" + 32 * "f"]).tolist()
    [[1], [2]]
    """
    content = bytes.fromhex("".join([digest[:32] for digest in sha256]))
    return np.ascontiguousarray(np.frombuffer(content, ">u8").astype(np.uint64).reshape(-1, 2).T)


def distinct(values: np.ndarray) -> tuple[Digests, np.ndarray, np.ndarray]:
    """Return the distinct ones among digests (2, N), in the order in which they come first.

    Returns:
        The U distinct digests; (U,) where each comes first; (N,) which of the distinct ones each digest is.

    >>> digests, first, which = distinct(np.array([[7, 5, 7, 7], [0, 0, 1, 0]], np.uint64))
    >>> digests.values.tolist(), first.tolist(), which.tolist()
    ([[7, 5, 7], [0, 0, 1]], [0, 1, 2], [0, 1, 2, 0])
    """
    order = np.argsort(values[0], kind="stable")
    similar = values[0, order[1:]] == values[0, order[:-1]]
    if not similar.any():
        everything = np.arange(values.shape[1])
        return Digests(values, order), everything, everything
    order = np.lexsort((values[1], values[0]))  # stable too: of equal ones the first comes first
    is_new = np.append(True, (values[:, order[1:]] != values[:, order[:-1]]).any(axis=0))
    first = np.sort(order[is_new])
    position = np.searchsorted(first, order[is_new])
    which = np.empty(values.shape[1], np.int64)
    which[order] = position[np.cumsum(is_new) - 1]
    return Digests(np.ascontiguousarray(values[:, first]), position), first, which
