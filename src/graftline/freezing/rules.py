"""The freeze rules that decide at once: from the data and the network to one freeze plan, or to several in turn.

Each rule also recommends how long to train and how fast: the deeper the training goes, the slower. The recommended
learning rates are AdamW's, for batches of 64.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import floor, sqrt

from torch import nn
from typing_extensions import TypedDict  # pydantic checks only this one before Python 3.12

from graftline.backbones.layers import body_groups, group_names, head_parameters
from graftline.errors import UserError
from graftline.freezing.plan import FreezePlan, depth_in_words, plan_from_depth, plan_from_names
from graftline.freezing.rule import FreezeContext, FreezeDecision, FreezeRule, check_recommendation, num_parameters


class _OnePhase(FreezeRule):
    """A rule whose training has one phase."""

    def decide(self, context: FreezeContext) -> FreezeDecision:
        """Decide what of the context's network is frozen.

        Raises:
            UserError: the rule does not fit the network, or would freeze layers that know nothing.
        """
        return FreezeDecision((context.finalize(self._plan(context)),), context.epochs)

    @abstractmethod
    def _plan(self, context: FreezeContext) -> FreezePlan:
        """Return the plan with the rule's own epochs."""


@dataclass(frozen=True)
class AllButHead(_OnePhase):
    """Only the new head is trained.

    Attributes:
        epochs: recommended.
        learning_rate: recommended.
    """

    epochs: int = 30
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        _check_own(self, self.epochs, self.learning_rate)

    def _plan(self, context: FreezeContext) -> FreezePlan:
        return _to_depth(context.network, len(body_groups(context.network)), self.epochs, self.learning_rate)


@dataclass(frozen=True)
class Nothing(_OnePhase):
    """The whole network is trained.

    Attributes:
        epochs: recommended.
        learning_rate: recommended.
    """

    epochs: int = 20
    learning_rate: float = 0.0003

    def __post_init__(self) -> None:
        _check_own(self, self.epochs, self.learning_rate)

    def _plan(self, context: FreezeContext) -> FreezePlan:
        return _to_depth(context.network, 0, self.epochs, self.learning_rate)


@dataclass(frozen=True)
class FirstStages(_OnePhase):
    """The first layer groups are frozen; one of ``number`` and ``fraction`` is given.

    Attributes:
        number: how many.
        fraction: how much of all layer groups below the head, 0 to 1, rounded to whole groups.
        epochs: recommended.
        learning_rate: recommended.
    """

    number: int | None = None
    fraction: float | None = None
    epochs: int = 12
    learning_rate: float = 0.001

    def __post_init__(self) -> None:
        _check_own(self, self.epochs, self.learning_rate)
        if (self.number is None) == (self.fraction is None):
            raise UserError("Give either FirstStages.number (such as 3) or FirstStages.fraction (such as 0.5).")
        if self.number is not None and self.number < 0:
            raise UserError(f"FirstStages.number is {self.number}, it must be at least 0.")
        if self.fraction is not None and not 0 <= self.fraction <= 1:
            raise UserError(f"FirstStages.fraction is {self.fraction}, it must be at least 0 and at most 1.")

    def _plan(self, context: FreezeContext) -> FreezePlan:
        names = group_names(context.network)
        if self.number is not None and self.number > len(names):
            raise UserError(
                f"FirstStages.number is {self.number}, but this network has {len(names)} layer groups below the head: "
                f"{', '.join(names)}."
            )
        number = self.number if self.number is not None else share_of(len(names), self.fraction or 0.0)
        return _to_depth(context.network, number, self.epochs, self.learning_rate)


@dataclass(frozen=True)
class Names(_OnePhase):
    """The parameters whose names match are frozen; all others are trained.

    Attributes:
        frozen: patterns as for file names, such as ``blocks.0.*``. The head is trained even where one matches it.
        epochs: recommended.
        learning_rate: recommended.
    """

    frozen: Sequence[str]
    epochs: int = 12
    learning_rate: float = 0.001

    def __post_init__(self) -> None:
        _check_own(self, self.epochs, self.learning_rate)
        if not self.frozen:
            raise UserError("Names.frozen names nothing: give patterns ([conv_stem.*]), or use Nothing().")

    def _plan(self, context: FreezeContext) -> FreezePlan:
        head = head_parameters(context.network)
        body = [name for name, _ in context.network.named_parameters() if name not in head]
        for pattern in self.frozen:
            if not any(fnmatchcase(name, pattern) for name in body):
                raise UserError(f"Names.frozen: {pattern} matches no parameter below the head.{_near(pattern, body)}")
        frozen = {name for name in body if any(fnmatchcase(name, pattern) for pattern in self.frozen)}
        reason = f"{len(frozen)} of {len(body)} tensors below the head frozen ({', '.join(self.frozen)})"
        return plan_from_names(context.network, frozen, reason, epochs=self.epochs, learning_rate=self.learning_rate)


@dataclass(frozen=True)
class Gradual(FreezeRule):
    """First the head is trained alone, then one layer group after the other joins it, from the head down.

    Howard and Ruder 2018 (ULMFiT, arXiv 1801.06146, section 3.3) unfreeze one layer per epoch; here a step is several
    epochs, as each is a fit of its own with its own learning-rate schedule.

    Attributes:
        head_epochs: of the first phase.
        step_epochs: of each further one; the last one also has what is left of ``epochs``.
        step_groups: how many layer groups join at each step.
        until: share of the layer groups that stays frozen to the end, 0 to 1, rounded to whole groups.
        epochs: of all phases together, recommended.
        head_learning_rate: of the first phase, recommended.
        learning_rate: of the further ones, recommended.
    """

    head_epochs: int = 10
    step_epochs: int = 5
    step_groups: int = 1
    until: float = 0.5
    epochs: int = 30
    head_learning_rate: float = 0.01
    learning_rate: float = 0.001

    def __post_init__(self) -> None:
        _check_own(self, self.epochs, self.learning_rate)
        check_recommendation(self.epochs, self.head_learning_rate, "Gradual.epochs", "Gradual.head_learning_rate")
        for key in ("head_epochs", "step_epochs", "step_groups"):
            if getattr(self, key) < 1:
                raise UserError(f"Gradual.{key} is {getattr(self, key)}, it must be at least 1.")
        if not 0 <= self.until <= 1:
            raise UserError(f"Gradual.until is {self.until}, it must be at least 0 and at most 1.")

    def decide(self, context: FreezeContext) -> FreezeDecision:
        """Return a plan per phase, as many as there are epochs for; together they have just the epochs given.

        Raises:
            UserError: layers would be frozen that know nothing.
        """
        depths = self._depths(len(body_groups(context.network)))
        epochs = self._epochs(self.epochs if context.epochs is None else context.epochs, len(depths))
        plans = []
        for number, (frozen, phase_epochs) in enumerate(zip(depths, epochs, strict=False), start=1):
            learning_rate = self.head_learning_rate if number == 1 else self.learning_rate
            plan = _to_depth(context.network, frozen, phase_epochs, learning_rate)
            context.check(plan)
            plans.append(replace(plan, reason=f"phase {number} of {len(epochs)}: {plan.reason}"))
        return FreezeDecision(tuple(plans), context.epochs)

    def _depths(self, groups: int) -> list[int]:
        """Return how many layer groups are frozen in each phase."""
        last = share_of(groups, self.until)
        return [*range(groups, last, -self.step_groups), last]

    def _epochs(self, total: int, num_phases: int) -> list[int]:
        """Return the epochs of each phase, for as many phases as they suffice for.

        >>> Gradual(head_epochs=10, step_epochs=5)._epochs(23, 9), Gradual()._epochs(30, 2), Gradual()._epochs(4, 9)
        ([10, 5, 5, 3], [10, 20], [4])
        """
        epochs = [min(self.head_epochs, total)]
        while sum(epochs) < total and len(epochs) < num_phases:
            epochs.append(min(self.step_epochs, total - sum(epochs)))
        return [*epochs[:-1], total - sum(epochs[:-1])]


class FreezeTableRow(TypedDict):
    """One row of the table of ``Auto``."""

    images_per_class: int
    frozen: float
    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class Auto(_OnePhase):
    """Looks up in a table what to freeze, by the number of training images per class and the size of the network.

    Attributes:
        table: rows of ``images_per_class`` (from this many on), ``frozen`` (share of the layer groups, 0 to 1),
            ``epochs`` and ``learning_rate`` (recommended).
        reference_parameters: size of network that the table is for. A larger one needs more images for the same row:
            as many times more as the square root of how many times it is larger.
        random_epochs: recommended where the weights are random, so that nothing is frozen.
        random_learning_rate: the same.

    Raises:
        UserError: the table does not start at 0 images, is not ascending, has a share outside 0 to 1, or freezes more
            where there are more images.
    """

    table: Sequence[FreezeTableRow]
    reference_parameters: int = 4_000_000
    random_epochs: int = 60
    random_learning_rate: float = 0.001

    def __post_init__(self) -> None:
        thresholds = [row["images_per_class"] for row in self.table]
        shares = [row["frozen"] for row in self.table]
        if thresholds[:1] != [0] or sorted(set(thresholds)) != thresholds:
            raise UserError("Auto.table must start at images_per_class: 0 and ascend from row to row.")
        if sorted(shares, reverse=True) != shares or not all(0 <= share <= 1 for share in shares):
            raise UserError("Auto.table must give shares between 1 and 0 that do not grow with the number of images.")
        for row in self.table:
            check_recommendation(row["epochs"], row["learning_rate"], "Auto.table.epochs", "Auto.table.learning_rate")
        check_recommendation(
            self.random_epochs, self.random_learning_rate, "Auto.random_epochs", "Auto.random_learning_rate"
        )
        if self.reference_parameters < 1:
            raise UserError(f"Auto.reference_parameters is {self.reference_parameters}, it must be at least 1.")

    def _plan(self, context: FreezeContext) -> FreezePlan:
        network = context.network
        if not context.pretrained:
            plan = _to_depth(network, 0, self.random_epochs, self.random_learning_rate)
            facts = "the weights are random, there is nothing to keep"
        else:
            row = self.row(context.images_per_class, num_parameters(network))
            number = share_of(len(body_groups(network)), row["frozen"])
            if number == len(body_groups(network)):  # of few groups three quarters may be all
                row = self.table[0]
            plan = _to_depth(network, number, row["epochs"], row["learning_rate"])
            facts = context.facts()
        return replace(plan, reason=f"{facts}: {plan.reason}")

    def row(self, images_per_class: float, parameters: int) -> FreezeTableRow:
        """Return the row of the table for so many images per class and a network of so many parameters."""
        worth = images_per_class / max(1.0, sqrt(parameters / self.reference_parameters))
        return next(row for row in reversed(self.table) if worth >= row["images_per_class"])


def share_of(groups: int, share: float) -> int:
    """Return a share of the layer groups as a number, halves upwards.

    >>> [share_of(8, share) for share in (0.0, 0.5, 0.7, 0.94, 1.0)]
    [0, 4, 6, 8, 8]
    """
    return floor(share * groups + 0.5)


def _check_own(rule: FreezeRule, epochs: int, learning_rate: float) -> None:
    """Make sure that a rule's ``epochs`` and ``learning_rate`` can be done.

    Raises:
        UserError: they cannot.
    """
    name = type(rule).__name__
    check_recommendation(epochs, learning_rate, f"{name}.epochs", f"{name}.learning_rate")


def _to_depth(network: nn.Module, frozen_groups: int, epochs: int, learning_rate: float) -> FreezePlan:
    reason = depth_in_words(network, frozen_groups)
    return plan_from_depth(network, frozen_groups, reason, epochs=epochs, learning_rate=learning_rate)


def _near(pattern: str, names: Sequence[str]) -> str:
    """Return a sentence with the names of parameters and modules that a pattern may mean, if there are any."""
    words = [name.split(".") for name in names]
    modules = {".".join([*parts[:length], "*"]) for parts in words for length in range(1, len(parts))}
    near = get_close_matches(pattern, sorted(modules.union(names)), n=3, cutoff=0.5)
    return f" Do you mean {' or '.join(near)}?" if near else f" They are called {names[0]} to {names[-1]}."
