"""The learning rate that a whole network takes."""

from torch import nn


def whole_network_rate(network: nn.Module) -> float:
    """Return AdamW's rate."""
    return 0.001 if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()) else 0.0001
