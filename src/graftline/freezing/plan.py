"""The freeze plan: which layers of a network are frozen, and why; and what it takes to keep them so."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from timm.models import group_parameters
from torch import nn

from graftline.errors import UserError


@dataclass(frozen=True)
class FreezePlan:
    """What a freeze rule decided.

    Attributes:
        trainable: names of the parameters that are trained; every other one is frozen.
        frozen_groups: how many of the network's layer groups, counted from the input, are frozen.
        num_groups: how many layer groups lie below the head.
        reason: why, in words, for the log and for the run.
    """

    trainable: frozenset[str]
    frozen_groups: int
    num_groups: int
    reason: str

    @property
    def only_head(self) -> bool:
        """Whether everything below the head is frozen."""
        return self.frozen_groups == self.num_groups

    def apply(self, network: nn.Module) -> None:
        """Take the gradient from the frozen parameters and put the frozen modules into eval mode."""
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in self.trainable)
        hold_frozen(network)

    def sentence(self, network: nn.Module) -> str:
        """Return the plan in one sentence without a full stop, with the share of the parameters that is trained."""
        counts = self.describe(network)
        trained, frozen = counts["trained_parameters"], counts["frozen_parameters"]
        return f"{self.reason}; {trained:,} of {trained + frozen:,} parameters are trained"

    def describe(self, network: nn.Module) -> dict[str, Any]:
        """Return the plan with its counts of parameters, for the run and for ``bundle.json``."""
        sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
        trained = sum(size for name, size in sizes.items() if name in self.trainable)
        return {
            "reason": self.reason,
            "frozen_groups": self.frozen_groups,
            "num_groups": self.num_groups,
            "trained_parameters": trained,
            "frozen_parameters": sum(sizes.values()) - trained,
        }


def hold_frozen(network: nn.Module) -> None:
    """Put every module whose parameters are all frozen into eval mode, with all that it contains.

    To be called after each ``network.train()``: ``requires_grad=False`` alone lets the statistics of BatchNorm move,
    and leaves dropout and stochastic depth on.
    """
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def head_parameters(network: Any) -> frozenset[str]:
    """Return the names of the parameters of a timm network's classifier (or classifiers, where it has two).

    Raises:
        UserError: the network has none, as timm's image encoders.
    """
    if not hasattr(network, "get_classifier"):
        raise UserError(f"{type(network).__name__} has no classifier that could be replaced: take another backbone.")
    classifier = network.get_classifier()
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    owned = {id(parameter) for head in heads for parameter in head.parameters()}
    return frozenset(name for name, parameter in network.named_parameters() if id(parameter) in owned)


def body_groups(network: Any) -> list[list[str]]:
    """Return the names of the parameters below the head, one list per layer group, from the input upwards.

    The groups are timm's own coarse ones (``group_matcher(coarse=True)``): the stem, then the stages. A network for
    which timm has none is one group.
    """
    head = head_parameters(network)
    try:
        groups = group_parameters(network, network.group_matcher(coarse=True))
    except (AttributeError, AssertionError):  # poolformer, pit: no matcher; rdnet: none that is coarse
        groups = {0: [name for name, _ in network.named_parameters()]}
    body = [[name for name in groups[number] if name not in head] for number in sorted(groups)]
    return [names for names in body if names]


def plan_from_depth(network: Any, frozen_groups: int, reason: str) -> FreezePlan:
    """Freeze the first ``frozen_groups`` layer groups below the head; the head is always trained."""
    groups: Sequence[Sequence[str]] = body_groups(network)
    frozen = {name for group in groups[:frozen_groups] for name in group}
    trainable = frozenset(name for name, _ in network.named_parameters() if name not in frozen)
    return FreezePlan(trainable, min(frozen_groups, len(groups)), len(groups), reason)
