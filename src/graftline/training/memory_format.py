"""The order of a network's numbers in memory while it is trained, and which of them are copied."""

import torch
from torch import nn

# The backward pass of a 1x1 convolution with a stride and fewer input channels than this writes beyond its memory on a
# CPU in channels_last (torch 2.14.1 with oneDNN, from images of about 100 px on; not in torch's usual order):
# tests/training/test_memory_format.py.
MIN_CHANNELS = 16

# Their backward pass needs their input: where they write over it, autograd copies it first (torch 2.14.1).
COPIED_IN_PLACE = (nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Mish, nn.SiLU)  # ReLU6 is a Hardtanh


def memory_format(network: nn.Module, *, on_cpu: bool) -> torch.memory_format:
    """Return the fastest order in which a network can be trained: channels last, unless torch would fail on it.

    Args:
        network: to which its freeze plan is applied; or a tail.
        on_cpu: whether it is trained on a CPU.
    """
    if on_cpu and any(map(_is_unsafe, network.modules())):
        return torch.contiguous_format
    return torch.channels_last


def avoid_copies(network: nn.Module) -> None:
    """Let activations whose input is needed later leave it alone, which gives the same numbers without a copy of it."""
    for module in network.modules():
        if isinstance(module, COPIED_IN_PLACE):
            module.inplace = False


def _is_unsafe(module: nn.Module) -> bool:
    """Tell whether torch cannot train a module in channels_last on a CPU."""
    return (
        isinstance(module, nn.Conv2d)
        and module.weight.requires_grad
        and set(module.kernel_size) == {1}
        and max(module.stride) > 1
        and module.in_channels < MIN_CHANNELS
        and module.groups == 1
    )
