"""Rules that choose on validation images which class is answered, one of which counts costs.

Letters: N images, K classes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.errors import UserError
from graftline.evaluation.metrics import mean_with_error
from graftline.evaluation.predictions import Predictions

ROUNDING = 1e-6  # relative, of float32 probabilities: the image that sets a bound is to be within it on any machine


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

    def check_classes(self, class_names: Collection[str]) -> None:
        """Make sure that the classes that it names are there, before images are read.

        Raises:
            UserError: one is not.
        """
        ...

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

    def check_classes(self, class_names: Collection[str]) -> None:
        """Accept all."""

    def check(self, counts: Mapping[str, int]) -> None:
        """Accept all."""

    def choose(self, predictions: Predictions) -> DecisionFit:  # noqa: ARG002 - the protocol's signature
        """Choose nothing."""
        return NOT_CHOSEN


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
        for label, row in self._by_name.items():
            for answer, cost in row.items():
                if not 0 <= cost < np.inf:
                    raise UserError(f"LowestCost.costs.{label}.{answer} is {cost}, it must be 0 or more.")

    def check_classes(self, class_names: Collection[str]) -> None:
        """Make sure that the classes are there."""
        for name in {*self._by_name, *(answer for row in self._by_name.values() for answer in row)}:
            if name not in class_names:
                known = ", ".join(list(class_names)[:8])
                raise UserError(f"LowestCost.costs names '{name}', but the classes are {known}: name one of them.")

    def check(self, counts: Mapping[str, int]) -> None:
        """Make sure that the classes are there."""
        self.check_classes(counts)

    def choose(self, predictions: Predictions) -> DecisionFit:
        """Keep the costs where they pay."""
        matrix = self.matrix(predictions.class_names)
        decision = Decision(costs=tuple(map(tuple, matrix.tolist())))
        answers = [one.answer(predictions.probabilities) for one in (MOST_PROBABLE, decision)]
        plain, least = (matrix[predictions.labels, answer] for answer in answers)
        difference, standard_error = mean_with_error(least - plain, predictions.drawn_groups)
        found = (
            f"an image costs {least.mean():.4f} on average instead of {plain.mean():.4f} (difference "
            f"{difference:+.4f}, standard error {standard_error:.4f}), on {len(plain):,} validation images"
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
        for label, row in self._by_name.items():
            for answer, cost in row.items():
                matrix[numbers[label], numbers[answer]] = cost
        return matrix

    @property
    def _by_name(self) -> dict[str, dict[str, float]]:
        """The costs by names as text: the command line takes those of classes such as 0 and 1 for numbers."""
        return {
            str(label): {str(answer): float(cost) for answer, cost in row.items()} for label, row in self.costs.items()
        }
