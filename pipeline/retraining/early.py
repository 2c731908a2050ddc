"""Settings that a training refuses once torch is loaded: plain numbers, which are looked at before anything is read."""

import math
from collections.abc import Mapping
from typing import Any

from graftline.errors import UserError
from graftline.evaluation.evaluation import Evaluation

Node = Mapping[str, Any]


def require_numbers(trainer: Node, optim: Node, evaluation: Node, seed: int, minutes: float | None) -> None:
    """Make sure that numbers are such as a training takes, also where none begins today, as that of a schedule.

    Args:
        trainer: the node as it is written.
        optim: likewise.
        evaluation: likewise.
        seed: of the training.
        minutes: that it may take.

    Raises:
        UserError: one is not.
    """
    epochs, rate = trainer.get("max_epochs"), optim.get("lr")
    if epochs is not None and not epochs >= 1:
        raise UserError(f"Trainer.max_epochs is {epochs}: give a number of epochs, at least 1.")
    if rate is not None and not 0 <= rate < float("inf"):  # also catches NaN
        optimizer = str(optim["_target_"]).rpartition(".")[2]
        raise UserError(f"{optimizer}.lr is {rate}, it must be at least 0.")
    Evaluation(**{name: evaluation[name] for name in ("resamples", "batch_size", "seed") if name in evaluation})
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}, it must be at least 0 and below 2^32.")
    if minutes is not None and not 0 < minutes < math.inf:  # also catches NaN
        raise UserError(f"minutes is {minutes}, it must be above 0 and finite.")
