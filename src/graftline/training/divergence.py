"""Divergence: a training whose loss is beyond use ends, instead of going on to a model that knows nothing."""

import math

import torch
from torch import nn

from graftline.errors import DivergenceError
from graftline.training.events import Metrics

# A mean training loss from which nothing comes back: who guesses among a million classes has 14. The validation loss
# says nothing of it: in the first epochs of a MobileOne with random weights, whose BatchNorm has seen only a few
# batches, it was 6e8.
MAX_LOSS = 1e6


def check_divergence(metrics: Metrics, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make sure that a training has not diverged.

    Args:
        metrics: of an epoch. They and the weights are the same in all processes, so that all of them end.
        network: after the epoch.
        optimizer: whose learning rate is to be lowered.

    Raises:
        DivergenceError: the training loss is no number or above ``MAX_LOSS``, or a weight is none.

    >>> network = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=10)
    >>> check_divergence({"train/loss": 1e28, "epoch": 0}, network, optimizer)
    Traceback (most recent call last):
    ...
    graftline.errors.DivergenceError: The training diverged: in epoch 1 the training loss is 1.0e+28, at...
    """
    loss = metrics["train/loss"]
    what = f"the training loss is {loss:.1e}" if math.isfinite(loss) else "the training loss is no number"
    if loss <= MAX_LOSS:  # false for what is no number
        if _is_finite(network):
            return
        what = "weights are no numbers"
    highest = max(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
    raise DivergenceError(
        f"The training diverged: in epoch {metrics['epoch'] + 1:.0f} {what}, at a learning rate of {highest:.3g}",
        f"lower {type(optimizer).__name__}.lr.",
    )


def _is_finite(network: nn.Module) -> bool:
    """Tell whether all trained weights are numbers; a GPU is waited for once."""
    finite = [parameter.detach().isfinite().all() for parameter in network.parameters() if parameter.requires_grad]
    return bool(torch.stack(finite).all())
