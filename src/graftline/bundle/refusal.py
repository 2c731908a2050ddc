"""Images that look like none of the training images: their classes are answered, and marked as refused.

The distance of an image is that of its embedding from the k-th nearest one of training images, all of unit length (Sun
et al. 2022, arXiv 2204.06507).

Letters: N images, M training images, E numbers of an embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftline.errors import UserError

CHUNK = 1024  # images whose distances are computed at once


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings (N, E) float32 of unit length."""
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    directions: np.ndarray = (embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    return directions


def neighbor_distances(references: np.ndarray, embeddings: np.ndarray, neighbor: int) -> np.ndarray:
    """Return the distance (N,) of each embedding from its ``neighbor``-th nearest reference.

    Args:
        references: (M, E) of unit length.
        embeddings: (N, E) of any length.
        neighbor: 1 is the nearest.
    """
    directions, found = unit(embeddings), [np.empty(0, np.float32)]
    for start in range(0, len(directions), CHUNK):
        cosines = directions[start : start + CHUNK] @ references.T
        nearest = np.partition(cosines, -neighbor, axis=1)[:, -neighbor]
        found.append(np.sqrt(np.maximum(2 - 2 * nearest, 0)))
    return np.concatenate(found)


@dataclass(frozen=True, eq=False)
class Refusal:
    """Tells which images are far from all training images.

    Attributes:
        references: (M, E) float32 of unit length, embeddings of training images.
        neighbor: k.
        threshold: the largest distance that is not refused.
        share: of the images of known classes that is refused, on average.
    """

    references: np.ndarray
    neighbor: int
    threshold: float
    share: float

    def refused(self, embeddings: np.ndarray) -> np.ndarray:
        """Tell which of the images with these embeddings (N, E) are refused (N,)."""
        too_far: np.ndarray = neighbor_distances(self.references, embeddings, self.neighbor) > self.threshold
        return too_far

    def save(self, file: Path) -> dict[str, Any]:
        """Write the references; returns JSON of the rest for ``bundle.json``."""
        np.save(file, self.references.astype(np.float16), allow_pickle=False)
        return {"neighbor": self.neighbor, "threshold": self.threshold, "share": self.share}

    @classmethod
    def load(cls, file: Path, content: Mapping[str, Any] | None) -> "Refusal | None":
        """Return what ``save`` wrote; None where ``bundle.json`` has none.

        Raises:
            UserError: the file cannot be read.
        """
        if content is None:
            return None
        try:
            references = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}): copy or save the bundle again.") from error
        return cls(references.astype(np.float32), content["neighbor"], content["threshold"], content["share"])
