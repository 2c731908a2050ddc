"""Training images that a bundle keeps in small, to be shown beside images that are like them.

Letters: M training images, N images, E numbers of an embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from graftline.bundle.refusal import unit
from graftline.errors import UserError, first_line

CHUNK = 4096  # training images that are compared at once


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Training images in small.

    Attributes:
        embeddings: (M, E) float16 of unit length.
        labels: (M,) int32, numbers of classes.
        pictures: M data URIs.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    pictures: Sequence[str]

    def save(self, file: Path) -> dict[str, Any]:
        """Write them; returns what ``bundle.json`` says of them."""
        text = np.frombuffer("\n".join(self.pictures).encode("ascii"), np.uint8)
        with file.open("wb") as opened:
            np.savez(opened, allow_pickle=False, embeddings=self.embeddings, labels=self.labels, pictures=text)
        return {"images": len(self.labels)}

    @classmethod
    def load(cls, file: Path, content: Mapping[str, Any] | None) -> Self | None:
        """Return what ``save`` wrote; None where ``bundle.json`` has none.

        Raises:
            UserError: the file cannot be read.
        """
        if content is None:
            return None
        try:
            with np.load(file, allow_pickle=False) as kept:
                pictures = kept["pictures"].tobytes().decode("ascii").split("\n")
                return cls(kept["embeddings"], kept["labels"], pictures)
        except Exception as error:  # what is wrong in a zip archive of arrays has a dozen kinds
            raise UserError(f"{file} cannot be read ({first_line(error)}): copy or save the bundle again.") from error


def nearest(references: np.ndarray, embeddings: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which references are nearest to each embedding, and how far: both are compared at unit length.

    Args:
        references: (M, E) of training images, of any length.
        embeddings: (N, E).
        count: how many are wanted of each.

    Returns:
        (N, count) rows of ``references``, the nearest first, and (N, count) distances from 0 to 2; fewer columns where
        there are fewer references. Of those equally near, the first comes first.
    """
    directions = unit(embeddings)
    rows = np.empty((len(embeddings), 0), np.int64)
    cosines = np.empty((len(embeddings), 0), np.float32)
    for start in range(0, len(references), CHUNK):
        some = directions @ unit(references[start : start + CHUNK]).T
        cosines = np.concatenate([cosines, some], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(np.arange(start, start + some.shape[1]), some.shape)], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        rows, cosines = np.take_along_axis(rows, order, axis=1), np.take_along_axis(cosines, order, axis=1)
    return rows, np.sqrt(np.maximum(2 - 2 * cosines, 0))
