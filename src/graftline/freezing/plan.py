"""The freeze plan: which layers of a network are frozen, and why; and what it takes to keep them so."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from graftline.backbones.layers import body_groups, group_names
from graftline.freezing.batchnorm import keeps_statistics


@dataclass(frozen=True)
class FreezePlan:
    """What a freeze rule decided.

    Attributes:
        trainable: names of the parameters that are trained; every other one is frozen.
        frozen_groups: how many of the network's layer groups, counted from the input, are frozen.
        num_groups: how many layer groups lie below the head.
        reason: what is frozen and why, in words, for the log and for the run.
        epochs: how many to train for at most: the user's number, else the rule's.
        learning_rate: that the rule recommends, for AdamW, below the head; it is the user's to overrule.
        head_factor: how many times as high the head's is, where it is the recommended one.
        epoch_images: of the training split that an epoch takes, others each time; None: all.
        seconds: that the fit may take: its learning rate falls by the clock, and it ends when they are over; None: as
            many as the epochs need.
        anew: whether a further phase begins with the weights that the training began with, not with those of the phase
            before.
    """

    trainable: frozenset[str]
    frozen_groups: int
    num_groups: int
    reason: str
    epochs: int = 30
    learning_rate: float = 0.005
    head_factor: float = 1.0
    epoch_images: int | None = None
    seconds: float | None = None
    anew: bool = False

    @property
    def decision(self) -> str:
        """What was decided, in a part of a sentence: what is frozen and why, and for how long the rest is trained."""
        if self.seconds is not None:
            return f"{self.reason}, for {self.seconds:,.0f} s"
        return f"{self.reason}, {self.epochs} epoch{'s' if self.epochs != 1 else ''}"

    @property
    def only_head(self) -> bool:
        """Whether everything below the head is frozen."""
        return self.frozen_groups == self.num_groups

    def because(self, reason: str) -> "FreezePlan":
        """Return the plan with another reason before its own."""
        return replace(self, reason=f"{reason}: {self.reason}")

    def trained_part(self, network: nn.Module) -> str:
        """Return in a word what is trained: ``head``, ``all``, or ``blocks.5+``: that layer group and those above."""
        if self.only_head:
            return "head"
        return "all" if self.frozen_groups == 0 else f"{group_names(network)[self.frozen_groups].split(' + ')[0]}+"

    def to_json(self) -> dict[str, Any]:
        """Return the plan as what JSON knows."""
        return {**asdict(self), "trainable": sorted(self.trainable)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "FreezePlan":
        """Return the plan that ``to_json`` wrote."""
        return cls(**{**content, "trainable": frozenset(content["trainable"])})

    def apply(self, network: nn.Module, *, frozen_statistics: bool = False) -> None:
        """Take the gradient from what is frozen and put it into eval mode; the rest into training mode, with gradients.

        A plan may follow another one: what was frozen before is then trained.

        Args:
            network: the whole network.
            frozen_statistics: BatchNorm is in eval mode in the trained layers, too.
        """
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in self.trainable)
        network.train()
        set_frozen_eval(network, frozen_statistics=frozen_statistics)

    def sentence(self, network: nn.Module) -> str:
        """Return the plan in one sentence without a full stop, with the share of the parameters that is trained."""
        counts = self.describe(network)
        trained, frozen = counts["trained_parameters"], counts["frozen_parameters"]
        sentence = f"{self.decision}; {trained:,} of {trained + frozen:,} parameters are trained"
        return "; ".join([sentence, *self._left_out(network)])

    def _left_out(self, network: nn.Module) -> list[str]:
        """Return which auxiliary heads (GoogLeNet's) are frozen, and thus in eval mode, where they give no output."""
        branches: Sequence[str] = getattr(network, "aux_heads", ())
        return [
            f"auxiliary head {number} lies below the boundary and is left out"
            for number, branch in enumerate(branches, start=1)
            if not any(name.startswith(f"{branch}.") for name in self.trainable)
        ]

    def describe(self, network: nn.Module) -> dict[str, Any]:
        """Return the plan with its counts of parameters, for the run and for ``bundle.json``."""
        sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
        trained = sum(size for name, size in sizes.items() if name in self.trainable)
        return {
            "reason": self.reason,
            "frozen_groups": self.frozen_groups,
            "num_groups": self.num_groups,
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "head_factor": self.head_factor,
            "trained_parameters": trained,
            "frozen_parameters": sum(sizes.values()) - trained,
        }


def set_frozen_eval(network: nn.Module, *, frozen_statistics: bool = False) -> None:
    """Put every module whose parameters are all frozen into eval mode, with all that it contains.

    To be called after each ``network.train()``: ``requires_grad=False`` alone lets the statistics of BatchNorm move,
    and leaves dropout and stochastic depth on.

    Args:
        network: the whole network, or a tail.
        frozen_statistics: BatchNorm whose weights are trained is put into eval mode, too: it keeps its statistics, and
            normalizes by them.
    """
    for module in network.modules():
        if is_fully_frozen(module) or (frozen_statistics and keeps_statistics(module)):
            module.eval()


def is_fully_frozen(module: nn.Module) -> bool:
    """Tell whether a module has parameters and all of them are frozen."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def plan_from_depth(
    network: Any, frozen_groups: int, reason: str, *, epochs: int = 30, learning_rate: float = 0.005
) -> FreezePlan:
    """Freeze the first ``frozen_groups`` layer groups below the head; the head is always trained."""
    frozen = {name for group in body_groups(network)[:frozen_groups] for name in group}
    return plan_from_names(network, frozen, reason, epochs=epochs, learning_rate=learning_rate)


def plan_from_names(
    network: Any, frozen: Collection[str], reason: str, *, epochs: int, learning_rate: float
) -> FreezePlan:
    """Freeze the parameters named; those of the head are not to be among them."""
    groups: Sequence[Sequence[str]] = body_groups(network)
    whole = [all(name in frozen for name in group) for group in groups]
    leading = whole.index(False) if False in whole else len(whole)
    trainable = frozenset(name for name, _ in network.named_parameters() if name not in frozen)
    return FreezePlan(trainable, leading, len(groups), reason, epochs, learning_rate)


def depth_in_words(network: nn.Module, frozen_groups: int) -> str:
    """Return in words how deep a network is frozen.

    >>> import timm
    >>> network = timm.create_model("test_efficientnet")
    >>> for frozen_groups in (0, 1, 4, 6):
    ...     print(depth_in_words(network, frozen_groups))
    nothing frozen
    stem (1 of 6 layer groups) frozen
    stem to blocks.2 (4 of 6 layer groups) frozen
    all 6 layer groups below the head frozen
    """
    names = [name.partition(" + ")[0] for name in group_names(network)]
    if frozen_groups == 0:
        return "nothing frozen"
    if frozen_groups >= len(names):
        return f"all {len(names)} layer groups below the head frozen"
    span = names[0] if frozen_groups == 1 else f"{names[0]} to {names[frozen_groups - 1]}"
    return f"{span} ({frozen_groups} of {len(names)} layer groups) frozen"
