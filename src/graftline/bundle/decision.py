"""Which class is answered, given probabilities, and which others it may be.

Letters: N images, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Decision:
    """Answers the most probable class, or as thresholds or costs say.

    Attributes:
        thresholds: K numbers; the class with the largest ratio of probability to threshold is answered. Of two classes
            whose thresholds sum to 1, that is the one whose probability reaches its threshold. Empty: there are none.
        costs: K rows of K: what it costs to answer a class (column) for an image of another (row); the class with the
            lowest expected cost is answered (Elkan 2001, The Foundations of Cost-Sensitive Learning). Empty: no costs.
        set_threshold: the set of an image are the classes that are at least so probable, and the one that is answered
            (Sadinle et al. 2019, arXiv 1609.00451). None: there are no sets.
    """

    thresholds: tuple[float, ...] = ()
    costs: tuple[tuple[float, ...], ...] = ()
    set_threshold: float | None = None

    def __post_init__(self) -> None:
        assert not (self.thresholds and self.costs), "thresholds or costs"

    @property
    def in_words(self) -> str:
        """How a class is answered, for a sentence."""
        if self.thresholds or self.costs:
            return f"by {'thresholds' if self.thresholds else 'costs'} of its own"
        return "with the most probable class"

    def answer(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the numbers (N,) of the classes that are answered, for probabilities (N, K) without NaN.

        >>> Decision(thresholds=(0.8, 0.2)).answer(np.array([[0.7, 0.3], [0.9, 0.1]]))
        array([1, 0])
        """
        if self.costs:
            least: np.ndarray = (probabilities @ np.array(self.costs)).argmin(axis=1)
            return least
        weighed = probabilities / np.array(self.thresholds) if self.thresholds else probabilities
        best: np.ndarray = weighed.argmax(axis=1)
        return best

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Tell which classes are in the set of each image (N, K), for probabilities (N, K) without NaN.

        >>> Decision(set_threshold=0.3).sets(np.array([[0.6, 0.4], [0.9, 0.1]]))
        array([[ True,  True],
               [ True, False]])
        """
        assert self.set_threshold is not None, "there are no sets"
        members: np.ndarray = probabilities >= self.set_threshold
        members[np.arange(len(members)), self.answer(probabilities)] = True
        return members

    def reordered(self, order: Sequence[int]) -> "Decision":
        """Return the same decision for classes in another order, or some of them.

        Args:
            order: the numbers that the classes had; those that it leaves out cannot be answered.

        >>> Decision(costs=((0.0, 1.0), (5.0, 0.0))).reordered([1, 0])
        Decision(thresholds=(), costs=((0.0, 5.0), (1.0, 0.0)), set_threshold=None)
        """
        thresholds = tuple(self.thresholds[number] for number in order) if self.thresholds else ()
        costs = tuple(tuple(self.costs[row][column] for column in order) for row in order) if self.costs else ()
        return replace(self, thresholds=thresholds, costs=costs)

    def to_dict(self) -> dict[str, Any] | None:
        """Return JSON for ``bundle.json``; None where the most probable class is answered, without a set."""
        content: dict[str, Any] = {}
        if self.thresholds:
            content["thresholds"] = list(self.thresholds)
        if self.costs:
            content["costs"] = [list(row) for row in self.costs]
        if self.set_threshold is not None:
            content["set_threshold"] = self.set_threshold
        return content or None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any] | None) -> "Decision":
        """Return what ``to_dict`` wrote; bundles before format 4 have none.

        >>> Decision.from_dict(Decision(costs=((0.0, 1.0), (5.0, 0.0)), set_threshold=0.1).to_dict())
        Decision(thresholds=(), costs=((0.0, 1.0), (5.0, 0.0)), set_threshold=0.1)
        """
        content = content or {}
        return cls(
            tuple(content.get("thresholds", ())),
            tuple(map(tuple, content.get("costs", ()))),
            content.get("set_threshold"),
        )


MOST_PROBABLE = Decision()
