"""The freeze plan: which layers of a network are frozen, and why; and what it takes to keep them so."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from graftline.backbones.layers import body_groups


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
        sentence = f"{self.reason}; {trained:,} of {trained + frozen:,} parameters are trained"
        return "; ".join([sentence, *self._left_out(network)])

    def _left_out(self, network: nn.Module) -> list[str]:
        """Say which side branches (GoogLeNet's) are frozen, and thus in eval mode, where they give no output."""
        branches: Sequence[str] = getattr(network, "side_branches", ())
        return [
            f"side branch {number} lies below the boundary and is left out"
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


def plan_from_depth(network: Any, frozen_groups: int, reason: str) -> FreezePlan:
    """Freeze the first ``frozen_groups`` layer groups below the head; the head is always trained."""
    groups: Sequence[Sequence[str]] = body_groups(network)
    frozen = {name for group in groups[:frozen_groups] for name in group}
    trainable = frozenset(name for name, _ in network.named_parameters() if name not in frozen)
    return FreezePlan(trainable, min(frozen_groups, len(groups)), len(groups), reason)
