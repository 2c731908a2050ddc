"""What every freeze rule shares: the context it decides by, and the decision, which is made once per run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil, inf
from typing import Any, ClassVar, Protocol

from torch import nn

from graftline.errors import UserError
from graftline.freezing.batchnorm import BatchNormChoice, check_batchnorm
from graftline.freezing.depth import DEEP_BATCH, PASSES_PER_STEP, deep_epochs
from graftline.freezing.measurement import BoundaryTrial, DepthMeasurement
from graftline.freezing.plan import FreezePlan


class TryBoundary(Protocol):
    """Fits a network as plans say, and leaves it and the random numbers as they were."""

    def __call__(
        self, plan: FreezePlan, start: BoundaryTrial | None = None, max_images: int | None = None
    ) -> BoundaryTrial:
        """Fit the network, from the weights of an earlier trial or its own.

        Args:
            plan: what is trained, and for how long.
            start: the trial whose weights it begins with.
            max_images: of the training split that are used; None: all.

        Returns:
            What came of it.

        Raises:
            DivergenceError: the training diverged.
        """
        ...


@dataclass(frozen=True)
class FreezeContext:
    """What a freeze rule decides by.

    Attributes:
        network: the whole timm network.
        num_images: of the training split.
        pretrained: whether the network's weights know anything.
        epochs: the user's own number, which every rule keeps to; None: the rule's.
        step_images: that one process passes for an optimizer step, where more than the head is trained.
        processes: that train together; a trial is one's alone.
        validation_counts: how many images of each class the validation split has, by which trials are judged.
        try_boundary: None: nothing can be tried.
        try_in_folds: the same by folds of training and validation images, where the latter are too few to choose by.
        seconds_left: for all that is still to be trained; None: there is no limit.
        image_seconds: how long an image takes to train the whole network, forward and backward.
        decoding_seconds: how long an image takes to be decoded; None: no time.
        head_is_live: whether the head alone is trained on images, as nothing can be cached; None: it is not.
    """

    network: nn.Module
    num_images: int
    pretrained: bool
    epochs: int | None = None
    step_images: int = DEEP_BATCH
    processes: int = 1
    validation_counts: Sequence[int] = ()
    try_boundary: TryBoundary | None = None
    try_in_folds: TryBoundary | None = None
    seconds_left: Callable[[], float] | None = None
    image_seconds: Callable[[], float] | None = None
    decoding_seconds: Callable[[], float] | None = None
    head_is_live: Callable[[], bool] | None = None

    @property
    def deep_epochs(self) -> int:
        """For how many epochs more than the head is trained, unless the user has a number."""
        return deep_epochs(self.num_images, self.step_images * self.processes, len(self.validation_counts))

    @property
    def pass_share(self) -> float:
        """How long an image takes to be decoded and to pass the frozen network, where to train the whole takes 1."""
        return 1 / PASSES_PER_STEP + self.decoding_share

    @property
    def decoding_share(self) -> float:
        """How long an image takes to be decoded, where to train the whole network takes 1."""
        if self.image_seconds is None or self.decoding_seconds is None:
            return 0.0
        return self.decoding_seconds() / self.image_seconds()

    @property
    def pass_steps(self) -> float:
        """How many images could be passed forward and backward in the time of one frozen pass over all images."""
        return (self.num_images + sum(self.validation_counts)) * self.pass_share

    def epochs_after(self, trained_images: int) -> int:
        """Return the epochs that are left where so many images were passed forward and backward before."""
        return max(1, ceil(self.deep_epochs - trained_images / self.num_images))

    def finalize(self, plan: FreezePlan) -> FreezePlan:
        """Return a plan with the user's own epochs, where there are such.

        Raises:
            UserError: the plan freezes layers that know nothing.
        """
        self.check(plan)
        return plan if self.epochs is None else replace(plan, epochs=self.epochs)

    def check(self, plan: FreezePlan) -> None:
        """Make sure that no layer is frozen whose weights are random.

        Raises:
            UserError: one is.
        """
        if not self.pretrained and any(name not in plan.trainable for name, _ in self.network.named_parameters()):
            raise UserError(
                f"The frozen layers would be random ({plan.reason}, and the backbone has no pretrained weights): "
                "use Nothing(), or give the backbone weights."
            )


@dataclass(frozen=True)
class FreezeDecision:
    """What a freeze rule decided.

    Attributes:
        plans: one for each phase of the training, in order.
        epochs: the user's own number that the rule kept to; None: the rule's.
        measurement: the evidence, where boundaries were tried.
        tried: folders of the trials that are the first phases already, in order.
        tried_on_all: whether the last of them had all training and validation images, so that it may be the best phase.
    """

    plans: tuple[FreezePlan, ...]
    epochs: int | None = None
    measurement: DepthMeasurement | None = None
    tried: tuple[str, ...] = ()
    tried_on_all: bool = False

    @property
    def first_judged(self) -> int:
        """The first phase that may be the best: the last trial if it had all images, else the one after the trials."""
        return len(self.tried) - (1 if self.tried and self.tried_on_all else 0)

    @property
    def reason(self) -> str:
        """What is frozen and why, phase by phase, in a part of a sentence."""
        return "; then ".join(plan.decision for plan in self.plans)

    def trained_part(self, network: nn.Module) -> str:
        """Return in a few words what is trained, in the first phase and in the last."""
        parts = [plan.trained_part(network) for plan in self.plans]
        return parts[0] if parts[0] == parts[-1] else f"{parts[0]} then {parts[-1]}"

    def to_json(self) -> dict[str, Any]:
        """Return the decision as what JSON knows, for a resume and for further processes, which do not decide again."""
        return {
            "plans": [plan.to_json() for plan in self.plans],
            "epochs": self.epochs,
            "measurement": asdict(self.measurement) if self.measurement is not None else None,
            "tried": self.tried,
            "tried_on_all": self.tried_on_all,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "FreezeDecision":
        """Return the decision that ``to_json`` wrote."""
        plans = tuple(FreezePlan.from_json(plan) for plan in content["plans"])
        evidence = content["measurement"]
        measurement = None if evidence is None else DepthMeasurement.from_json(evidence)
        tried = tuple(content.get("tried", ()))
        return cls(plans, content["epochs"], measurement, tried, content.get("tried_on_all", False))


@dataclass(frozen=True)
class FreezeRule(ABC):
    """Decides from the data and the network which layers are frozen, in one phase of a training or in several.

    Attributes:
        needs_trials: whether ``decide`` calls ``FreezeContext.try_boundary``, which takes time.
        batchnorm: what happens to BatchNorm's statistics, for whoever trains: ``trained`` with the layers that are,
            ``frozen`` in all layers, ``adapted`` to training images before the training, then as ``trained``, or
            ``auto``: frozen where there are few training images, else trained.
    """

    needs_trials: ClassVar[bool] = False

    batchnorm: BatchNormChoice = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        check_batchnorm(self.batchnorm, f"{type(self).__name__}.batchnorm")

    @abstractmethod
    def decide(self, context: FreezeContext) -> FreezeDecision:
        """Decide what of the context's network is frozen.

        Raises:
            UserError: the rule does not fit the network, or would freeze layers that know nothing.
        """

    def use_spare_time(self, decision: FreezeDecision, context: FreezeContext) -> FreezeDecision:  # noqa: ARG002 - for rules that try boundaries
        """Return the decision with what is done in the time that it leaves, where there is a limit."""
        return decision

    def change_epochs(self, decision: FreezeDecision, context: FreezeContext) -> FreezeDecision:  # noqa: ARG002 - for rules that try boundaries
        """Return an earlier decision for the context's number of epochs; nothing is tried again."""
        return self.decide(context)


def check_recommendation(epochs: int, learning_rate: float, epochs_name: str, learning_rate_name: str) -> None:
    """Make sure that what a rule recommends can be done.

    Args:
        epochs: number of epochs.
        learning_rate: of AdamW.
        epochs_name: ``Class.argument`` that gives the epochs, for the message.
        learning_rate_name: likewise.

    Raises:
        UserError: it cannot.
    """
    if epochs < 1:
        raise UserError(f"{epochs_name} is {epochs}, it must be at least 1.")
    if not 0 < learning_rate < inf:  # also catches NaN
        raise UserError(f"{learning_rate_name} is {learning_rate}, it must be above 0.")
