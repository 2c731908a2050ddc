"""A rule that finds a share of the images of one class, or of each of several.

Letters: N images, K classes.
"""

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.errors import UserError
from graftline.evaluation.decision import ROUNDING, DecisionFit
from graftline.evaluation.predictions import Predictions
from graftline.words import join_names

DEFAULT_RECALL = 0.95
MOST_ROUNDS = 10_000  # what still rises then is so near to targets that cannot be met that it is not told from these
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class FindClasses:
    """Answers the class with the largest product of probability and weight (Hydra target).

    All weights are 1, but those of the named classes are raised as far as their recalls on validation images need, and
    no further; see ``least_weights``. The targets leave room for chance: of the N validation images of a class, at
    most floor((N + 1) (1 - recall)) - 1 are missed. A new image is as likely the hardest to find as any other of N + 1,
    so that the recall of new images is at least the target on average (split conformal prediction: Sadinle et al.
    2019, arXiv 1609.00451, theorem 1). That is a theorem for one class. The weights of several depend on each other:
    simulations (tests/evaluation/test_recalls.py) show the same, except for targets that can barely be met together.

    Attributes:
        class_name: the one to find; None: those of ``recalls``.
        recall: share of its images that is to be found.
        recalls: class → share of its images that is to be found, for several classes.

    Raises:
        UserError: no class is named, or in both ways, or a recall is not between 0 and 1.
    """

    class_name: str | None = None
    recall: float = DEFAULT_RECALL
    recalls: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.targets:
            raise UserError("FindClasses.class_name is missing: name the class to find, or give FindClasses.recalls.")
        if self.recalls and (self.class_name is not None or self.recall != DEFAULT_RECALL):
            raise UserError(
                "FindClasses.recalls names all classes to find, each with its recall: leave out FindClasses.class_name "
                "and FindClasses.recall."
            )
        for name, recall in self.targets.items():
            if not 0 < recall < 1:
                raise UserError(f"{self._key(name)} is {recall}, it must be above 0 and below 1, such as 0.95.")

    @property
    def targets(self) -> dict[str, float]:
        """Class → share of its images that is to be found.

        Names are text: the command line takes those of classes such as 0 and 1 for numbers.
        """
        if self.recalls:
            return {str(name): float(recall) for name, recall in self.recalls.items()}
        return {} if self.class_name is None else {self.class_name: self.recall}

    def check_classes(self, class_names: Collection[str]) -> None:
        """Make sure that the classes are there."""
        if unknown := [f"'{name}'" for name in self.targets if name not in class_names]:
            argument = "recalls names" if self.recalls else "class_name is"
            raise UserError(
                f"FindClasses.{argument} {join_names(unknown)}, but the classes are "
                f"{join_names(list(class_names), 8)}: name some of them."
            )

    def check(self, counts: Mapping[str, int]) -> None:
        """Make sure that the classes are there and have as many validation images as their targets need."""
        self.check_classes(counts)
        if len(counts) < 2:
            raise UserError("FindClasses needs a second class to tell the first from: there is one class only.")
        few = [
            f"{self._key(name)}={recall} needs {math.ceil(1 / (1 - recall) - 1 - 1e-9)} validation images of “{name}”, "
            f"and there are {counts[name]}"
            for name, recall in self.targets.items()
            if position(counts[name], recall) < 1
        ]
        if few:
            raise UserError(f"{'; '.join(few)}: give a lower one, or more images to the validation split.")

    def choose(self, predictions: Predictions) -> DecisionFit:
        """Choose the weights.

        Raises:
            UserError: the targets cannot be met together.
        """
        names = predictions.class_names
        counts = np.bincount(predictions.labels, minlength=len(names))
        positions = {
            number: position(int(counts[number]), self.targets[name])
            for number, name in enumerate(names)
            if name in self.targets
        }
        weights = least_weights(predictions.probabilities, predictions.labels, positions)
        if weights is None:
            raise UserError(self._out_of_reach(predictions, positions))
        if (weights == 1).all():
            rule, decision = "The most probable class is answered, which finds as many as are asked for", MOST_PROBABLE
        else:
            thresholds = 1 / weights
            thresholds = np.maximum(thresholds / (thresholds.min() + thresholds.max()), TINY)  # two of them sum to 1
            decision = Decision(thresholds=tuple(thresholds.tolist()))
            rule = _in_words(names, weights, thresholds)
        return DecisionFit(decision, f"{rule}: {_found(predictions, decision, list(positions))}.")

    def _out_of_reach(self, predictions: Predictions, positions: Mapping[int, int]) -> str:
        """Say that the targets cannot be met together, and how far each would have to be lowered by itself."""
        names = predictions.class_names
        asked = " and ".join(f"{self.targets[names[number]]:g} of “{names[number]}”" for number in positions)
        possible = [
            f"{recall:g} of “{names[number]}”"
            for number in positions
            if (recall := highest_recall(predictions.probabilities, predictions.labels, positions, number)) > 0
        ]
        way_out = f"{' or '.join(possible)} can, beside the others" if possible else "lower several of them"
        return (
            f"FindClasses.recalls asks for {asked}, which cannot be met together on the {len(predictions.labels):,} "
            f"validation images: {way_out}. A resume of the run takes other targets, and trains nothing again."
        )

    def _key(self, name: str) -> str:
        """Return the argument that has the target of a class."""
        return f"FindClasses.recalls.{name}" if self.recalls else "FindClasses.recall"


def position(num_images: int, recall: float) -> int:
    """Return which of the images of a class, from the one that is hardest to find, is to be found as the first.

    0 would be beyond that one: the images are too few.
    """
    return math.floor((num_images + 1) * (1 - recall) + 1e-9)


def least_weights(probabilities: np.ndarray, labels: np.ndarray, positions: Mapping[int, int]) -> np.ndarray | None:
    """Return the least weights (K,), none below 1, with which enough images of each named class are found.

    The class with the largest product of probability and weight is answered. Given the weights of the others, each
    image of a class is found from a certain weight on, and the image at the class's position sets its weight. What is
    raised for one class is lost for the others, so that they are raised in turn, from 1, until each has what it needs.
    Since none ever needs less when another is raised, this ends at the weights that are the least for each class, if
    there are any that do (Yates 1995, A framework for uplink power control in cellular radio systems, theorem 2: there,
    stations raise their power against each other).

    They cost the least accuracy: if the probabilities are right, the most accurate of all classifiers with given
    recalls answers by such weights, and raises none whose class is found more often than is asked (the Neyman-Pearson
    problem of several classes: Tian and Feng 2025, Journal of the American Statistical Association 120, 1164).

    Args:
        probabilities: (N, K).
        labels: (N,).
        positions: number of a named class → its image, from the one that is hardest to find, that is the first to be
            found; 1 is the hardest.

    Returns:
        The weights; None where none meet the needs of all.
    """
    logs = np.log(np.maximum(probabilities.astype(np.float64), TINY))  # (N, K)
    leads = {}  # number of a named class → (images of it, K), how far each other class is ahead there
    for number in positions:
        of_class = logs[labels == number]
        leads[number] = of_class - of_class[:, [number]]
        leads[number][:, number] = -np.inf

    def raised(weights: np.ndarray, numbers: Iterable[int], least: float) -> np.ndarray:
        """Return the logarithms of the weights (K,) after each of some classes took what it needs, in turn."""
        weights = weights.copy()
        for number in numbers:
            needed = (leads[number] + weights).max(axis=1) + ROUNDING
            rank = len(needed) - positions[number]
            weights[number] = max(least, np.partition(needed, rank)[rank])
        return weights

    weights = np.zeros(probabilities.shape[1])
    for _ in range(MOST_ROUNDS):
        before, weights = weights, raised(weights, positions, 0.0)
        rises = weights > before
        if not rises.any():
            return np.exp(weights)
        alone = raised(np.where(rises, before, -np.inf), np.flatnonzero(rises).tolist(), -np.inf)
        if (alone[rises] > before[rises]).all():  # against each other alone they need more, and so they ever will
            return None
    return None


def highest_recall(probabilities: np.ndarray, labels: np.ndarray, positions: Mapping[int, int], number: int) -> float:
    """Return the highest recall of a class, rounded down to 3 digits, that can be met beside those of the others.

    Args:
        probabilities: (N, K).
        labels: (N,).
        positions: as ``least_weights`` takes them.
        number: of the class.

    Returns:
        The recall; 0 where the others cannot be met even without it.
    """

    def is_met(first: int) -> bool:
        return least_weights(probabilities, labels, {**positions, number: first}) is not None

    num_images = int((labels == number).sum())
    first = 1 + bisect_left(range(1, num_images + 1), True, key=is_met)  # what is met with one is met with all above
    return math.floor(1000 * (1 - first / (num_images + 1)) + 1e-9) / 1000 if first <= num_images else 0.0


def _in_words(names: Sequence[str], weights: np.ndarray, thresholds: np.ndarray) -> str:
    """Say what weights (K,) come to, or thresholds, where there are two classes."""
    if len(names) == 2:
        number = int(weights.argmax())
        return f"“{names[number]}” is answered where its probability is {thresholds[number]:.3f} or more"
    raised = [f"“{names[number]}” times {weights[number]:.3f}" for number in np.flatnonzero(weights > 1).tolist()]
    return f"The largest probability is answered, that of {' and that of '.join(raised)}"


def _found(predictions: Predictions, decision: Decision, numbers: Sequence[int]) -> str:
    """Say how much of some classes a decision finds, and at what price."""
    names, labels = predictions.class_names, predictions.labels
    before, after = (one.answer(predictions.probabilities) for one in (MOST_PROBABLE, decision))
    found = [
        f"“{names[number]}” is found in {_changed(before[of_class] == number, after[of_class] == number)} of its "
        f"images, and {_changed(of_class[before == number], of_class[after == number])} of such answers are right"
        for number in numbers
        for of_class in [labels == number]
    ]
    right = f"{_changed(before == labels, after == labels)} of all answers are right"
    return f"on {len(labels):,} validation images {'; '.join([*found, right])}"


def _changed(before: np.ndarray, after: np.ndarray) -> str:
    """Return the share of flags that are set, and what it was."""
    was, now = (f"{100 * flags.mean():.1f} %" if len(flags) else "none" for flags in (before, after))
    return now if was == now else f"{now} instead of {was}"
