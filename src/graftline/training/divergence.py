"""Divergence: a training whose loss is beyond use ends, instead of going on to a model that knows nothing."""

import math

import torch

from graftline.errors import UserError
from graftline.training.events import Metrics

# A mean cross-entropy from which nothing comes back: who guesses among a million classes has 14.
MAX_LOSS = 1e6
LOSSES = {"train/loss": "training", "val/loss": "validation"}


class DivergenceError(UserError):
    """The loss of a training is no number, or has grown beyond use."""


def check_loss(metrics: Metrics, optimizer: torch.optim.Optimizer) -> None:
    """Make sure that a training has not diverged.

    Args:
        metrics: of an epoch, the same in all processes, so that all of them end.
        optimizer: whose learning rate is to be lowered.

    Raises:
        DivergenceError: a loss is no number or above ``MAX_LOSS``.

    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=10)
    >>> check_loss({"train/loss": 2.0, "val/loss": 1e28, "epoch": 0}, optimizer)
    Traceback (most recent call last):
    ...
    graftline.training.divergence.DivergenceError: The training diverged: in epoch 1 the validation loss is 1.0e+28, ...
    """
    for name, kind in LOSSES.items():
        loss = metrics[name]
        if loss <= MAX_LOSS:  # false for what is no number
            continue
        is_what = f"{loss:.1e}" if math.isfinite(loss) else "no number"
        highest = max(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
        raise DivergenceError(
            f"The training diverged: in epoch {metrics['epoch'] + 1:.0f} the {kind} loss is {is_what}, at a learning "
            f"rate of {highest:.3g}: lower {type(optimizer).__name__}.lr."
        )
