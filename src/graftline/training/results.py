"""What a training gives: the history of its epochs, and what came of each of its phases."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftline.freezing.measurement import Difference
from graftline.training.events import Metrics

# Early stopping and the choice of the checkpoint see validation only, never the test split; and they see the loss that
# is left once the probabilities are calibrated, as the bundle's are.
MONITOR = "val/calibrated_loss"


@dataclass(frozen=True)
class FitHistory:
    """The epochs of a fit.

    Attributes:
        epochs: metrics of each epoch, in order.
        best: metrics of the epoch whose weights are kept.
        seconds: wall-clock time, that before a resume left out.
        steps: optimizer steps done, those before a resume included.
        interrupted: whether the user has ended it, after the best of its epochs so far.
    """

    epochs: list[Metrics]
    best: Metrics
    seconds: float
    steps: int
    interrupted: bool = False


@dataclass(frozen=True)
class PhaseResult:
    """What came of one phase: a fit as one freeze plan says.

    Attributes:
        planned_epochs: how many there were to be at most.
        history: of the fit.
        source: what was trained on what, in a sentence.
        augmented: whether the training images were augmented.
        freeze_record: what the freeze check counted and hashed.
        cache_change: by how much a predicted probability differs between cached activations and images; None where
            nothing is cached.
        losses: the calibrated log loss of each validation image in the best epoch, where another phase is to be
            better by evidence; None: the lower loss decides.
    """

    planned_epochs: int
    history: FitHistory
    source: str
    augmented: bool
    freeze_record: Mapping[str, Any]
    cache_change: float | None
    losses: Sequence[float] | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "PhaseResult":
        """Return the result whose ``dataclasses.asdict`` went through JSON."""
        return cls(**{**content, "history": FitHistory(**content["history"])})

    def difference(self, other: "PhaseResult") -> Difference | None:
        """Return how much more log loss it has than another phase; None where that was not scored image by image."""
        if self.losses is None or other.losses is None:
            return None
        return Difference.of(np.array(self.losses), np.array(other.losses))

    def is_better(self, other: "PhaseResult") -> bool:
        """Tell whether it is to be kept in place of another phase."""
        if (difference := self.difference(other)) is not None:
            return difference.is_likely_below_zero
        return monitored(self.history.best) < monitored(other.history.best)


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training, whose network has the weights of the best epoch of all phases.

    Attributes:
        phases: in order.
        first_judged: the first of them whose weights may be the best; those before it are trials that led there.
    """

    phases: tuple[PhaseResult, ...]
    first_judged: int = 0

    @property
    def history(self) -> FitHistory:
        """The epochs of all phases as one fit, whose best is that of the best phase."""
        epochs: list[Metrics] = []
        for number, phase in enumerate(self.phases):
            if number == self.best_phase:
                best = _counted_on(phase.history.best, len(epochs))
            epochs += [_counted_on(metrics, len(epochs)) for metrics in phase.history.epochs]
        histories = [phase.history for phase in self.phases]
        seconds, steps = sum(one.seconds for one in histories), sum(one.steps for one in histories)
        return FitHistory(epochs, best, seconds, steps, histories[-1].interrupted)

    @property
    def kept(self) -> PhaseResult:
        """The phase whose weights the network has."""
        return self.phases[self.best_phase]

    @property
    def best_phase(self) -> int:
        """Which phase's weights the network has, from 0."""
        return self.first_judged + best_of(self.phases[self.first_judged :])


def _counted_on(metrics: Metrics, epochs: int) -> Metrics:
    """Return an epoch's metrics with its number behind so many epochs of earlier phases."""
    return {**metrics, "epoch": metrics["epoch"] + epochs}


def best_of(phases: Sequence[PhaseResult]) -> int:
    """Return which of at least one phases is the best, from 0: the first of equal ones."""
    best = 0
    for number, phase in enumerate(phases):
        if phase.is_better(phases[best]):
            best = number
    return best


def is_judged(epoch: int, max_epochs: int) -> bool:
    """Return whether an epoch, from 0, may be kept for its validation loss: one of the second half.

    In the first half of a cosine the learning rate is high, and the loss wanders from epoch to epoch: the lowest of
    many is low by chance, most of all on few validation images.

    >>> [is_judged(epoch, max_epochs=5) for epoch in range(5)]
    [False, False, True, True, True]
    """
    return 2 * (epoch + 1) > max_epochs


def kept_epoch(epochs: Sequence[Metrics], max_epochs: int) -> Metrics:
    """Return the metrics of the one of at least one epochs whose weights are kept.

    Of those that are judged it has the lowest calibrated validation loss; where there is none yet, it is the last.

    Args:
        epochs: that are done, in order.
        max_epochs: that the fit is to have.
    """
    judged = [metrics for metrics in epochs if is_judged(int(metrics["epoch"]), max_epochs)]
    return min(judged, key=monitored) if judged else epochs[-1]


def monitored(metrics: Metrics) -> float:
    """Return the number by which the best epoch is chosen, the lower the better; what is no number is worst."""
    value = metrics[MONITOR]
    return math.inf if math.isnan(value) else value


def log_loss(metrics: Metrics) -> float:
    """Return the calibrated log loss on validation images, in which each image counts as one."""
    return metrics["val/log_loss"] if "val/log_loss" in metrics else metrics[MONITOR]
