"""Gradient checkpointing: blocks whose activations are computed again in the backward pass instead of being kept.

Chen et al. 2016, arXiv 1604.06174, as timm's networks do it by themselves (``set_grad_checkpointing``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def checkpointed(network: Any, *, on: bool) -> Iterator[None]:
    """Let a network do it during the block.

    The statistics of BatchNorm, which would move a second time in the backward pass, move once as without it.

    Args:
        network: timm's.
        on: False: nothing is done.
    """
    if not on:
        yield
        return
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [module.momentum for module in norms]
    hooks = [
        module.register_forward_pre_hook(partial(_move_once, momentum))
        for module, momentum in zip(norms, momenta, strict=True)
    ]
    network.set_grad_checkpointing(True)
    try:
        yield
    finally:
        network.set_grad_checkpointing(False)
        for module, momentum, hook in zip(norms, momenta, hooks, strict=True):
            module.momentum = momentum
            hook.remove()


def _move_once(momentum: float | None, module: Any, _: Any) -> None:
    """Let a layer's statistics stay where they are while the backward pass is on its way."""
    in_backward = torch._C._current_graph_task_id() != -1  # as torch.utils.checkpoint asks
    module.momentum = 0.0 if in_backward else momentum
    if in_backward and module.training:
        module.num_batches_tracked.sub_(1)  # the layer adds it again
