"""The images of a window: what a model gave for them, and what they were called.

Letters: N images, K classes, E numbers of an embedding, D of a projected one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from graftline.bundle.answers import join_answers, report_progress
from graftline.bundle.ensemble import AnyPredictor
from graftline.bundle.reference import Observations, Reference
from graftline.data.image_facts import find_facts

AT_ONCE = 256  # images whose embeddings are in memory


@dataclass(frozen=True, eq=False)
class Window:
    """Images that a model has seen.

    Attributes:
        observed: of N of them, drawn evenly.
        names: N names: paths, or where images came without one the beginning of their digest.
        num_seen: how many there were in all.
        num_unreadable: images that could not be read, or that the model gave no finite numbers for.
        num_refused: that the model marked as none of its classes.
        begin: when the first was seen; None: nobody knows.
        end: when the last was.
        pictures: small versions of some of the images, as encoded files, by their number.
        class_shares: (K,) mean calibrated probability of each class over all images with an answer, which is the share
            of them that is to be expected of it; None where an earlier graftline has kept some of them.
    """

    observed: Observations
    names: Sequence[str]
    num_seen: int
    num_unreadable: int = 0
    num_refused: int = 0
    begin: datetime | None = None
    end: datetime | None = None
    pictures: dict[int, bytes] = field(default_factory=dict)
    class_shares: np.ndarray | None = None


def look_at_files(
    predictor: AnyPredictor, reference: Reference, paths: Sequence[str], on_progress: Callable[[int], None]
) -> Window:
    """Classify files, and look at them.

    Args:
        predictor: the model's.
        reference: of the model.
        paths: of the files; all of them are looked at.
        on_progress: is given the number of images just done.
    """
    parts: list[Observations] = []
    names: list[str] = []
    refused, probabilities = 0, np.zeros(len(predictor.class_names))
    for start in range(0, len(paths), AT_ONCE):
        some = paths[start : start + AT_ONCE]
        answers = join_answers(list(report_progress(predictor.stream(some, embed=True), on_progress)))
        rows = [row for row in range(len(some)) if row not in answers.reasons]
        readable = [some[row] for row in rows]
        facts = find_facts(readable, predictor.decoding).table.to_numpy(np.float32)
        embeddings = project(reference, answers.embeddings, len(some))
        parts.append(Observations.of(predictor.decision, answers.probabilities[rows], embeddings[rows], facts))
        names += readable
        refused += 0 if answers.refused is None else int(answers.refused[rows].sum())
        probabilities += answers.probabilities[rows].sum(axis=0, dtype=np.float64)
    observed = Observations.join(parts)
    shares = probabilities / len(names) if names else None
    return Window(observed, names, len(paths), len(paths) - len(names), refused, class_shares=shares)


def project(reference: Reference, embeddings: np.ndarray | None, count: int) -> np.ndarray:
    """Return embeddings (N, E) of ``count`` images as (N, D); without any, D is 0."""
    return np.empty((count, 0), np.float16) if embeddings is None else reference.projection(embeddings)
