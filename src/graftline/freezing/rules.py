"""The freeze rules that decide at once: from the data and the network to one freeze plan, or to several in turn.

Each rule also recommends how long to train and how fast: the deeper the training goes, the slower. The recommended
learning rates are AdamW's, for batches of 64.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from graftline.backbones.layers import body_groups, group_names, head_parameters
from graftline.errors import UserError
from graftline.freezing.depth import HEAD_EPOCHS, deep_plan, head_plan, random_plan, share_of
from graftline.freezing.evidence import too_few_to_choose
from graftline.freezing.plan import FreezePlan, depth_in_words, plan_from_depth, plan_from_names
from graftline.freezing.rates import HEAD_RATE
from graftline.freezing.rule import FreezeContext, FreezeDecision, FreezeRule, check_recommendation
from graftline.freezing.spare_time import has_time_for_more


class _OneDepth(FreezeRule):
    """A rule that decides on one depth."""

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
class AllButHead(_OneDepth):
    """Only the new head is trained.

    Attributes:
        epochs: recommended.
        learning_rate: recommended; None: by the network.
    """

    epochs: int = HEAD_EPOCHS
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_own(self, self.epochs, self.learning_rate)

    def _plan(self, context: FreezeContext) -> FreezePlan:
        return head_plan(context.network, epochs=self.epochs, learning_rate=self.learning_rate)


@dataclass(frozen=True)
class Nothing(_OneDepth):
    """The whole network is trained.

    Attributes:
        epochs: recommended; None: by the number of training images.
        learning_rate: recommended; None: by the network.
    """

    epochs: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_own(self, self.epochs, self.learning_rate)

    def _plan(self, context: FreezeContext) -> FreezePlan:
        return _to_depth(context, 0, self.epochs, self.learning_rate)


@dataclass(frozen=True)
class AllAfterHead(Nothing):
    """The head is trained, then the whole network from its own weights, which is kept if it is likely better.

    The head takes seconds, from cached activations. Where there are none, or no time for both, or too few validation
    images to choose by, only the whole network is trained.
    """

    def decide(self, context: FreezeContext) -> FreezeDecision:
        """Decide for one phase, or for two."""
        whole = super().decide(context)
        is_live = context.head_is_live is None or context.head_is_live()
        if is_live or too_few_to_choose(context.validation_counts) is not None or not has_time_for_more(context):
            return whole
        return _after_head(whole, context.finalize(head_plan(context.network)))

    def change_epochs(self, decision: FreezeDecision, context: FreezeContext) -> FreezeDecision:
        """Return an earlier decision for the context's number of epochs, in as many phases as it had."""
        whole = super().decide(context)
        if len(decision.plans) == 1:
            return whole
        return _after_head(whole, context.finalize(head_plan(context.network)))


def _after_head(whole: FreezeDecision, head: FreezePlan) -> FreezeDecision:
    (plan,) = whole.plans
    return replace(whole, plans=(head, replace(plan, anew=True)))


@dataclass(frozen=True)
class FirstStages(_OneDepth):
    """The first layer groups are frozen; one of ``number`` and ``fraction`` is given.

    Attributes:
        number: how many.
        fraction: how much of all layer groups below the head, 0 to 1, rounded to whole groups.
        epochs: recommended.
        learning_rate: recommended.
    """

    number: int | None = None
    fraction: float | None = None
    epochs: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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
        return _to_depth(context, number, self.epochs, self.learning_rate)


@dataclass(frozen=True)
class Names(_OneDepth):
    """The parameters whose names match are frozen; all others are trained.

    Attributes:
        frozen: patterns as for file names, such as ``blocks.0.*``. The head is trained even where one matches it.
        epochs: recommended.
        learning_rate: recommended.
    """

    frozen: Sequence[str]
    epochs: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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
        usual = _to_depth(context, 0, self.epochs, self.learning_rate)
        plan = plan_from_names(context.network, frozen, reason, epochs=usual.epochs, learning_rate=usual.learning_rate)
        return replace(plan, head_factor=usual.head_factor)


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
        head_learning_rate: of the first phase, recommended; None: by the network.
        learning_rate: of the further ones, recommended.
    """

    head_epochs: int = 10
    step_epochs: int = 5
    step_groups: int = 1
    until: float = 0.5
    epochs: int = 30
    head_learning_rate: float | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_own(self, self.epochs, self.learning_rate)
        rate = HEAD_RATE if self.head_learning_rate is None else self.head_learning_rate
        check_recommendation(self.epochs, rate, "Gradual.epochs", "Gradual.head_learning_rate")
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
            plan = _to_depth(context, frozen, phase_epochs, learning_rate)
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


def _check_own(rule: FreezeRule, epochs: int | None, learning_rate: float | None) -> None:
    """Make sure that a rule's ``epochs`` and ``learning_rate`` can be done, where they are given.

    Raises:
        UserError: they cannot.
    """
    name = type(rule).__name__
    check_recommendation(
        HEAD_EPOCHS if epochs is None else epochs,
        HEAD_RATE if learning_rate is None else learning_rate,
        f"{name}.epochs",
        f"{name}.learning_rate",
    )


def _to_depth(
    context: FreezeContext, frozen_groups: int, epochs: int | None, learning_rate: float | None
) -> FreezePlan:
    """Return the plan for a depth; what is None is as `graftline.freezing.depth` recommends."""
    network = context.network
    if frozen_groups == len(body_groups(network)):
        usual = head_plan(network)
    elif context.pretrained:
        usual = deep_plan(network, frozen_groups, "", context.deep_epochs)
    else:
        usual = random_plan(network)
    plan = plan_from_depth(
        network,
        frozen_groups,
        depth_in_words(network, frozen_groups),
        epochs=usual.epochs if epochs is None else epochs,
        learning_rate=usual.learning_rate if learning_rate is None else learning_rate,
    )
    return replace(plan, head_factor=usual.head_factor if learning_rate is None else 1.0)


def _near(pattern: str, names: Sequence[str]) -> str:
    """Return a sentence with the names of parameters and modules that a pattern may mean, if there are any."""
    words = [name.split(".") for name in names]
    modules = {".".join([*parts[:length], "*"]) for parts in words for length in range(1, len(parts))}
    near = get_close_matches(pattern, sorted(modules.union(names)), n=3, cutoff=0.5)
    return f" Do you mean {' or '.join(near)}?" if near else f" They are called {names[0]} to {names[-1]}."
