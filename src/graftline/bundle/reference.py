"""What a model gave for images that it was not fitted on, kept in its bundle: what later images are compared with.

Letters: N images, E numbers of an embedding, D of a projected one, F facts of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from graftline.bundle.decision import Decision
from graftline.data.image_facts import FACTS
from graftline.errors import UserError, first_line

# A fact's distribution is then known to within 4 percentage points. They take 164 kB, and the signs 64 bytes for each
# number of an embedding: 82 kB for 1,280 numbers.
MOST_IMAGES = 1_000
DIMENSIONS = 64  # D


@dataclass(frozen=True, eq=False)
class Observations:
    """What a model gave for N images, and what can be said of them without it.

    Attributes:
        embeddings: (N, D) float16, projected; D is 0 where the model gives none.
        answers: (N,) int32, numbers of the classes that were answered.
        confidences: (N,) float32, their calibrated probabilities.
        facts: (N, F) float32, in the order of `graftline.data.image_facts.FACTS`.
    """

    embeddings: npt.NDArray[np.float16]
    answers: npt.NDArray[np.int32]
    confidences: npt.NDArray[np.float32]
    facts: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        assert self.facts.shape == (len(self.answers), len(FACTS)), "a row per image, a column per fact"
        assert len(self.embeddings) == len(self.answers) == len(self.confidences), "a row per image"

    def __len__(self) -> int:
        return len(self.answers)

    @classmethod
    def of(cls, decision: Decision, probabilities: np.ndarray, embeddings: np.ndarray, facts: np.ndarray) -> Self:
        """Return what is kept of answers.

        Args:
            decision: which class is answered.
            probabilities: (N, K), calibrated.
            embeddings: (N, D), projected.
            facts: (N, F).
        """
        answers = decision.answer(probabilities)
        confidences = probabilities[np.arange(len(answers)), answers]
        return cls(
            embeddings.astype(np.float16),
            answers.astype(np.int32),
            confidences.astype(np.float32),
            facts.reshape(-1, len(FACTS)).astype(np.float32),
        )

    def take(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> "Observations":
        """Return those of some images."""
        return Observations(*(getattr(self, field.name)[rows] for field in fields(Observations)))

    @classmethod
    def join(cls, parts: "Sequence[Observations]") -> "Observations":
        """Return those of several samples, one after the other."""
        return cls(*(np.concatenate([getattr(one, field.name) for one in parts]) for field in fields(cls)))


@dataclass(frozen=True, eq=False)
class Projection:
    """Makes embeddings short: random signs add their numbers up (Achlioptas 2003, J. Comput. Syst. Sci. 66(4)).

    Distances keep their ratios but for a tenth or so. Nothing of it is fitted to the reference but one scale: numbers
    divided by their spread there would lie farther away in all later images, by chance alone. The signs themselves
    are kept, not a seed: no later version of a generator of random numbers can change them.

    Attributes:
        signs: (E, D) int8; without embeddings (0, 0).
        scale: of the result.
    """

    signs: npt.NDArray[np.int8]
    scale: float

    @classmethod
    def fit(cls, embeddings: np.ndarray, seed: int = 0) -> Self:
        """Return one for embeddings such as these (N, E), which become about 1 long; E is 0 where there are none."""
        width = embeddings.shape[1]
        if width == 0:
            return cls(np.empty((0, 0), np.int8), 1.0)
        signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (width, DIMENSIONS))
        length = float(np.linalg.norm(embeddings.astype(np.float64), axis=1).mean())
        return cls(signs, 1 / (max(length, 1e-6) * np.sqrt(DIMENSIONS)))

    def __call__(self, embeddings: np.ndarray) -> npt.NDArray[np.float16]:
        """Return embeddings (N, E) as (N, D)."""
        projected = embeddings @ self.signs.astype(np.float32) * np.float32(self.scale)
        short: npt.NDArray[np.float16] = projected.astype(np.float16)
        return short


@dataclass(frozen=True, eq=False)
class Reference:
    """What a model gave for validation images.

    Attributes:
        observed: of N of them.
        labels: (N,) int32, numbers of their classes.
        groups: (N,) int32, numbers from 0: equal where images belong together.
        projection: of embeddings; of none of their numbers where the model gives none.
    """

    observed: Observations
    labels: npt.NDArray[np.int32]
    groups: npt.NDArray[np.int32]
    projection: Projection

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the model was right."""
        right: npt.NDArray[np.bool_] = self.observed.answers == self.labels
        return right

    def save(self, file: Path) -> dict[str, Any]:
        """Write it; returns what ``bundle.json`` says of it."""
        arrays = {field.name: getattr(self.observed, field.name) for field in fields(Observations)}
        arrays |= {"labels": self.labels, "groups": self.groups, "signs": self.projection.signs}
        arrays["scale"] = np.float64(self.projection.scale)
        with file.open("wb") as opened:
            np.savez(opened, allow_pickle=False, **arrays)
        return {"images": len(self.observed), "facts": list(FACTS)}

    @classmethod
    def load(cls, file: Path, content: Mapping[str, Any] | None) -> "Reference | None":
        """Return what ``save`` wrote; None where ``bundle.json`` has none, or one with other facts of images.

        Raises:
            UserError: the file cannot be read.
        """
        if content is None or content.get("facts") != list(FACTS):
            return None
        try:
            with np.load(file, allow_pickle=False) as kept:
                arrays = {name: kept[name] for name in kept.files}
        except Exception as error:  # what is wrong in a zip archive of arrays has a dozen kinds
            raise UserError(f"{file} cannot be read ({first_line(error)}): copy or save the bundle again.") from error
        observed = Observations(*(arrays[field.name] for field in fields(Observations)))
        projection = Projection(arrays["signs"], float(arrays["scale"]))
        return cls(observed, arrays["labels"], arrays["groups"], projection)
