"""Rules that choose on validation images which class is answered: one that finds a class, one that counts costs.

Letters: N images, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.errors import UserError
from graftline.evaluation.predictions import Predictions

ROUNDING = 1e-6  # relative, of float32 probabilities: the image that sets a threshold is to reach it on any machine


@dataclass(frozen=True)
class DecisionFit:
    """What a rule chose.

    Attributes:
        decision: to be used.
        sentence: what it is and what came of it on validation images; empty where nothing was chosen.
    """

    decision: Decision
    sentence: str


NOT_CHOSEN = DecisionFit(MOST_PROBABLE, "")


class DecisionRule(Protocol):
    """Chooses which class is answered."""

    def check(self, counts: Mapping[str, int]) -> None:
        """Make sure that it can choose, before a training.

        Args:
            counts: validation images of each class, by name.

        Raises:
            UserError: a class is not there, or there are too few images.
        """
        ...

    def choose(self, predictions: Predictions) -> DecisionFit:
        """Choose on calibrated predictions of validation images."""
        ...


@dataclass(frozen=True)
class MostProbable:
    """The most probable class is answered (Hydra target)."""

    def check(self, counts: Mapping[str, int]) -> None:
        """Accept all."""

    def choose(self, predictions: Predictions) -> DecisionFit:  # noqa: ARG002 - the protocol's signature
        """Choose nothing."""
        return NOT_CHOSEN


@dataclass(frozen=True)
class FindClass:
    """A threshold that finds a share of one class (Hydra target).

    The class is answered where its probability, as a multiple of the largest of the others, reaches what all but a few
    of its N validation images reach: the floor((N + 1) (1 - recall))-th from below sets the threshold. A new image is
    as likely the lowest of N + 1 as any other, so that the recall of new images is at least the target on average
    (split conformal prediction: Sadinle et al. 2019, arXiv 1609.00451, theorem 1).

    Attributes:
        class_name: to find.
        recall: share of its images that is to be found.

    Raises:
        UserError: the recall is not between 0 and 1.
    """

    class_name: str
    recall: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.recall < 1:
            raise UserError(f"FindClass.recall is {self.recall}, it must be above 0 and below 1, such as 0.95.")

    def check(self, counts: Mapping[str, int]) -> None:
        """Make sure that the class is there and has as many validation images as the target needs."""
        if self.class_name not in counts:
            known = ", ".join(list(counts)[:8])
            raise UserError(
                f"FindClass.class_name is '{self.class_name}', but the classes are {known}: name one of them."
            )
        if len(counts) < 2:
            raise UserError("FindClass needs a second class to tell the first from: there is one class only.")
        if self._missed(counts[self.class_name]) < 1:
            needed = int(np.ceil(1 / (1 - self.recall) - 1 - 1e-9))
            raise UserError(
                f"FindClass.recall={self.recall} needs {needed} validation images of “{self.class_name}”, and there "
                f"are {counts[self.class_name]}: give a lower one, or more images to the validation split."
            )

    def choose(self, predictions: Predictions) -> DecisionFit:
        """Choose the threshold."""
        number = predictions.class_names.index(self.class_name)
        probabilities = predictions.probabilities.astype(np.float64)
        others = np.delete(probabilities, number, axis=1).max(axis=1)
        of_class = predictions.labels == number
        multiples = np.sort(probabilities[of_class, number] / np.maximum(others[of_class], np.finfo(np.float32).tiny))
        multiple = multiples[self._missed(len(multiples)) - 1] * (1 - ROUNDING)
        thresholds = np.full(len(predictions.class_names), 1 / (1 + multiple))
        thresholds[number] = multiple / (1 + multiple)
        decision = Decision(thresholds=tuple(np.maximum(thresholds, np.finfo(np.float32).tiny).tolist()))
        before, after = (one.answer(predictions.probabilities) == number for one in (MOST_PROBABLE, decision))
        reached = f"its probability is {thresholds[number]:.3f} or more"
        if len(thresholds) > 2:
            reached = f"its probability is {multiple:.3f} times that of any other or more"
        return DecisionFit(
            decision,
            f"“{self.class_name}” is answered where {reached}: on {len(of_class):,} validation images it is found in "
            f"{_share(after[of_class])} of its images instead of {_share(before[of_class])}, and "
            f"{_share(of_class[after])} of such answers are right instead of {_share(of_class[before])}.",
        )

    def _missed(self, num_images: int) -> int:
        """Return which image, from the lowest, sets the threshold: 1 is the lowest, 0 would be below it."""
        return int(np.floor((num_images + 1) * (1 - self.recall) + 1e-9))


@dataclass(frozen=True)
class LowestCost:
    """The class with the lowest expected cost is answered (Hydra target).

    The probabilities decide (Elkan 2001), which calibrated ones do best. It is kept only if that costs less on the
    validation images than to answer the most probable class.

    Attributes:
        costs: class → answered class → what that costs, in any unit; what is not named costs 1, the right answer 0.

    Raises:
        UserError: there are no costs, or one is negative or no number.
    """

    costs: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        if not self.costs:
            raise UserError("LowestCost.costs is empty: say of a class what it costs to answer another one for it.")
        for label, row in self.costs.items():
            for answer, cost in row.items():
                if not 0 <= cost < np.inf:
                    raise UserError(f"LowestCost.costs.{label}.{answer} is {cost}, it must be 0 or more.")

    def check(self, counts: Mapping[str, int]) -> None:
        """Make sure that the classes are there."""
        for name in {*self.costs, *(answer for row in self.costs.values() for answer in row)}:
            if name not in counts:
                known = ", ".join(list(counts)[:8])
                raise UserError(f"LowestCost.costs names '{name}', but the classes are {known}: name one of them.")

    def choose(self, predictions: Predictions) -> DecisionFit:
        """Keep the costs where they pay."""
        matrix = self.matrix(predictions.class_names)
        decision = Decision(costs=tuple(map(tuple, matrix.tolist())))
        answers = [one.answer(predictions.probabilities) for one in (MOST_PROBABLE, decision)]
        plain, least = (matrix[predictions.labels, answer] for answer in answers)
        found = (
            f"an image costs {least.mean():.4f} on average instead of {plain.mean():.4f} (difference "
            f"{(least - plain).mean():+.4f}, standard error {(least - plain).std() / np.sqrt(len(plain)):.4f}), on "
            f"{len(plain):,} validation images"
        )
        if least.mean() < plain.mean():
            return DecisionFit(decision, f"The class with the lowest expected cost is answered: {found}.")
        return DecisionFit(
            MOST_PROBABLE, f"The most probable class is answered; with that of the lowest expected cost {found}."
        )

    def matrix(self, class_names: tuple[str, ...]) -> np.ndarray:
        """Return the costs (K, K): row of the true class, column of the answer."""
        matrix = 1.0 - np.eye(len(class_names))
        numbers = {name: number for number, name in enumerate(class_names)}
        for label, row in self.costs.items():
            for answer, cost in row.items():
                matrix[numbers[label], numbers[answer]] = cost
        return matrix


def _share(flags: np.ndarray) -> str:
    return f"{100 * flags.mean():.1f} %" if len(flags) else "none"
