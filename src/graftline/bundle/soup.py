"""A soup: one network whose weights are the mean of others': Wortsman et al. 2022, arXiv 2203.05482.

It works for networks that were trained from the same weights, and ended near each other.

Letters: B batch, C channels, h, w size of the network's input in px.
"""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path

import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import graftline.backbones.zoo  # noqa: F401 - registers our own networks with timm
from graftline.bundle.layout import WEIGHTS_FILE, read_description
from graftline.errors import UserError

STATISTICS = ("running_mean", "running_var")


def check_soup(directories: Sequence[Path]) -> None:
    """Make sure that the weights of bundles can be averaged.

    Raises:
        UserError: there is only one, or they are of different architectures, image sizes, classes or layers.
    """
    if len(directories) < 2:
        raise UserError(f"A soup is of 2 models at least, and there is {directories[0]} alone: give more.")
    descriptions = [read_description(directory) for directory in directories]
    for directory, own in zip(directories, descriptions, strict=True):
        for key in ("timm_name", "preprocessing", "class_names"):
            if own[key] != descriptions[0][key]:
                raise UserError(
                    f"{directory} has another {key} than {directories[0]}, and a soup averages the weights of one "
                    "network: leave it out, or average probabilities instead."
                )
    first = _shapes(directories[0])
    for directory in directories[1:]:
        own = _shapes(directory)
        if other := sorted(key for key in first.keys() | own.keys() if first.get(key) != own.get(key)):
            raise UserError(
                f"{directory} has other layers than {directories[0]} (first: {other[0]}), as networks of other "
                "arguments have, and a soup averages the weights of one network: leave it out, or average "
                "probabilities instead."
            )


def _shapes(directory: Path) -> dict[str, list[int]]:
    """Return the shape of each weight of a bundle."""
    with safe_open(directory / WEIGHTS_FILE, "pt") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - no mapping


def load_networks(directories: Sequence[Path]) -> list[nn.Module]:
    """Load the networks of bundles that `check_soup` has let pass, in eval mode."""
    return [timm.create_model(f"local-dir:{directory}", pretrained=True).eval() for directory in directories]


def average_weights(networks: Sequence[nn.Module], batches: Iterable[Tensor]) -> nn.Module:
    """Return a network with the mean of the weights, in eval mode.

    The statistics of BatchNorm are not averaged but measured anew on images, as those of a mean of weights are others
    than the mean of those of the weights (Izmailov et al. 2018, arXiv 1803.05407, section 3.2). Those that all networks
    share, as below a frozen boundary, stay.

    Args:
        networks: of one architecture.
        batches: training images (B, C, h, w) as the network is given them; taken only where they are needed.
    """
    soup = copy.deepcopy(networks[0])
    states = [network.state_dict() for network in networks]
    mean = {
        key: torch.stack([state[key] for state in states]).mean(dim=0) if value.is_floating_point() else value
        for key, value in states[0].items()
    }
    soup.load_state_dict(mean)
    layers = [
        layer
        for name, layer in soup.named_modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and _differ(states, name)
    ]
    if layers:
        _measure(soup, layers, batches)
    return soup.eval()


def _differ(states: Sequence[dict[str, Tensor]], layer: str) -> bool:
    keys = [f"{layer}.{name}" for name in STATISTICS]
    return any(not torch.equal(state[key], states[0][key]) for state in states for key in keys)


def _measure(network: nn.Module, layers: Sequence[_BatchNorm], batches: Iterable[Tensor]) -> None:
    """Measure the statistics of some layers anew; all else is as in evaluation."""
    before = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over batches
        layer.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
