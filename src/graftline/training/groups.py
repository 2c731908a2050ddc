"""Layer groups of the optimizer: the nearer to the input, the smaller the learning rate."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from graftline.backbones.layers import HEAD, body_groups, group_names
from graftline.training.optimizers import wants_head_apart

ALL = "all"  # what stands for the layer groups where they have one rate
CORRECTED = "max_lr_snapshot"  # the highest rate, by which some of timm's optimizers scale their weight decay
ORDINARY = "use_fallback"  # what timm's Muon calls a group that it takes AdamW's steps on


@dataclass(frozen=True)
class Layers:
    """Where the parameters of a network lie; taken from the whole network, it holds for every tail of it.

    Attributes:
        names: of each parameter: what the layer group that it belongs to is called; one that is missing is the head's.
        distances: of each layer group by its name: how many groups up from it the head comes, at least 1.
        head_factor: how many times the base learning rate the head has.
        undecayed: names (or patterns) of the parameters that the architecture itself wants without weight decay.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    distances: Mapping[str, int] = field(default_factory=dict)
    head_factor: float = 1.0
    undecayed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, network: Any, head_factor: float = 1.0) -> "Layers":
        """Return those of a whole timm network.

        Args:
            network: the network.
            head_factor: how many times the base learning rate the head has.

        >>> import timm
        >>> Layers.of(timm.create_model("test_efficientnet")).distances
        {'stem': 6, 'blocks.0': 5, 'blocks.1': 4, 'blocks.2': 3, 'blocks.3': 2, 'blocks.4': 1}
        """
        groups = body_groups(network)
        layers = [name.partition(" + ")[0] for name in group_names(network)]
        names = {name: layer for group, layer in zip(groups, layers, strict=True) for name in group}
        distances = {layer: len(layers) - number for number, layer in enumerate(layers)}
        listed = getattr(network, "no_weight_decay", None)
        undecayed = frozenset(listed()) if callable(listed) else frozenset()
        return cls(names, distances, head_factor, undecayed)

    def layer(self, parameter: str) -> str:
        """Return the name of the layer group of a parameter."""
        return self.names.get(parameter, HEAD)

    def factor(self, layer: str, decay: float) -> float:
        """Return how many times the base learning rate a layer group has: ``decay ** distance`` below the head."""
        return self.head_factor if layer == HEAD else float(decay ** self.distances.get(layer, 0))


def make_optimizer(
    network: nn.Module, make: Callable[..., Optimizer], *, weight_decay: float, layers: Layers, layer_decay: float
) -> Optimizer:
    """Return the optimizer of all that is trained, in groups of one rate and one weight decay, the head's first.

    The factor of each layer group (Clark et al. 2020, ELECTRA, section 3.1) is in the group's own ``lr``, which a torch
    scheduler made afterwards takes for its base. timm's ``lr_scale`` would be read by timm's schedulers only.

    Args:
        network: a network or its tail.
        make: takes groups of parameters.
        weight_decay: for weights; biases, norms and ``layers.undecayed`` have none.
        layers: of the whole network.
        layer_decay: factor on the learning rate from each layer group to the next one down; 1: the same for all.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = defaultdict(list)
    apart = wants_head_apart(make)
    for part in param_groups_weight_decay(network, weight_decay, no_weight_decay_list=layers.undecayed):
        for parameter in part["params"]:
            layer = layers.layer(names[id(parameter)])
            is_one_rate = layer_decay == 1 and (layer != HEAD or layers.head_factor == 1)
            key = (ALL if is_one_rate else layer, part["weight_decay"], apart and layer == HEAD)
            groups[key].append(parameter)
    keys = sorted(groups, key=lambda key: -1 if key[0] == HEAD else layers.distances.get(key[0], 0))
    optimizer = make(
        [
            {
                "params": groups[layer, decay, head],
                "weight_decay": decay,
                "layer": layer,
                **({ORDINARY: True} if head else {}),
            }
            for layer, decay, head in keys
        ]
    )
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * layers.factor(group["layer"], layer_decay)
        if CORRECTED in group:
            group[CORRECTED] = group["lr"]
    return optimizer


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Return the learning rates that the next step takes: ``lr/LAYER`` → rate, the head's first."""
    return {f"lr/{group['layer']}": float(group["lr"]) for group in optimizer.param_groups}
