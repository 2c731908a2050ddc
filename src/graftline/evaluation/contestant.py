"""Two models on the same test images, as a gate compares them: what each gave, and what is known of it.

Letters: N images, K classes, M classes that both models know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.bundle.predictor import softmax
from graftline.data.decoding import PLAIN, Decoding
from graftline.evaluation.predictions import Predictions

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model beside its answers.

    Attributes:
        milliseconds: per image, files to probabilities, measured beside the other model's.
        megabytes: of what a server loads.
        input: how files become the network's pixels, in words that are equal where it is.
        output: the columns that a server answers with, beside those of the classes.
        golden_problem: why its golden images are not reproduced here; None: they are.
        frozen: what the freeze check of its training came to; None: it left no record.
    """

    milliseconds: float
    megabytes: float
    input: str
    output: tuple[str, ...] = ()
    golden_problem: str | None = None
    frozen: str | None = None


@dataclass(frozen=True, eq=False)
class Contestant:
    """A model that has classified the test images.

    Attributes:
        name: for people, such as "version 3".
        class_names: K names, in the order of the columns.
        logits: (N, K).
        bundle_digest: of the model.
        decision: which class it answers.
        facts: what else is known; None for what is no model, such as the frequencies of the classes.
    """

    name: str
    class_names: tuple[str, ...]
    logits: np.ndarray
    bundle_digest: str
    decision: Decision = MOST_PROBABLE
    facts: ModelFacts | None = None

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(N, K); each row sums to 1."""
        return softmax(self.logits)

    @cached_property
    def answers(self) -> npt.NDArray[np.object_]:
        """(N,) names of the classes that are answered."""
        names = np.asarray(self.class_names, dtype=object)
        answers: npt.NDArray[np.object_] = names[self.decision.answer(self.probabilities)]
        return answers


@dataclass(frozen=True, eq=False)
class TestImages:
    """The images of a test split.

    Attributes:
        paths: N files.
        labels: (N,) names of classes.
        sha256: N digests of the files' bytes.
        dataset: name of the data set.
        split_digest: of images and labels.
        decoding: how the files become pixels, for those who look at them.
        columns: N rows, what there is to slice by; None: nothing.
        seen: (N,) whether an image trained the champion, or chose its epoch; None: there is none, or nobody knows.
        groups: N names; images of one group are alike. None: each stands alone.
        weights: (N,) float32; None where the data set has none.
    """

    __test__ = False  # pytest takes it for a test

    paths: list[str]
    labels: npt.NDArray[np.object_]
    sha256: list[str]
    dataset: str
    split_digest: str
    decoding: Decoding = PLAIN
    columns: pd.DataFrame | None = None
    seen: Bools | None = None
    groups: Sequence[str] | None = None
    weights: npt.NDArray[np.float32] | None = None

    def of_classes(self, class_names: Sequence[str]) -> Bools:
        """Return (N,) whether an image is of one of the classes."""
        return np.isin(self.labels.astype(str), list(class_names))


def frequencies(counts: dict[str, int], images: TestImages) -> Contestant:
    """Return what always gives the classes the frequencies that they have among training images: the least of models.

    Args:
        counts: training images by class.
        images: N of them, all of which get the same.
    """
    shares = np.array(list(counts.values()), dtype=np.float64) + 1  # a class without training images is not impossible
    logits = np.tile(np.log(shares / shares.sum()), (len(images.paths), 1))
    return Contestant("class frequencies", tuple(counts), logits, "")


def given_common_classes(model: Contestant, common: Sequence[str], images: TestImages, rows: Bools) -> Predictions:
    """Return what a model gives if the image is known to be of one of the classes that both know.

    Args:
        model: the model.
        common: M classes.
        images: N of them.
        rows: (N,) which of them are compared; all of these are of the M classes.
    """
    columns = [model.class_names.index(name) for name in common]
    numbers = {name: number for number, name in enumerate(common)}
    chosen = np.flatnonzero(rows)
    return Predictions(
        paths=[images.paths[row] for row in chosen],
        logits=model.logits[chosen][:, columns],
        labels=np.array([numbers[str(images.labels[row])] for row in chosen], dtype=np.int64),
        weights=None if images.weights is None else images.weights[chosen],
        sha256=[images.sha256[row] for row in chosen],
        class_names=tuple(common),
        split="test",
        dataset=images.dataset,
        split_digest=images.split_digest,
        bundle_digest=model.bundle_digest,
        decision=model.decision.reordered(columns),
        groups=None if images.groups is None else [images.groups[row] for row in chosen.tolist()],
    )
