"""Trainer and optimizer before they are used: what this machine can do, what a fit needs, and where it will run."""

import functools
import inspect
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from graftline.errors import UserError, first_line
from graftline.execution import Execution
from graftline.training.module import Optimizer

MakeTrainer = Callable[..., pl.Trainer]

OURS = frozenset(
    {
        "callbacks",
        "enable_checkpointing",
        "enable_model_summary",
        "enable_progress_bar",
        "fast_dev_run",
        "logger",
        "num_sanity_val_steps",
        "use_distributed_sampler",
    }
)


def check_trainer(make_trainer: MakeTrainer) -> Execution:
    """Make sure that this machine can do what the trainer asks for, before anything heavy starts.

    Args:
        make_trainer: ``functools.partial`` of ``pytorch_lightning.Trainer``.

    Returns:
        Where the first process of the training runs.

    Raises:
        UserError: no such device here, settings that contradict each other, a training without end, or one on several
            machines or in processes that something else has started.
    """
    if (launcher := foreign_launcher(os.environ)) is not None:
        raise UserError(
            f"This process was started by {launcher}, which graftline cannot train under until a later version: "
            "start one process by itself, it starts those for the other devices of this machine."
        )
    for key in sorted(OURS & set(getattr(make_trainer, "keywords", {}))):
        raise UserError(f"Trainer.{key} is not yours to set, a fit needs it its own way: leave it out.")
    trainer = _make(make_trainer)
    if trainer.num_nodes > 1:
        raise UserError(
            f"Trainer.num_nodes is {trainer.num_nodes}, but graftline trains on one machine until a later version: "
            "leave it out."
        )
    if trainer.precision.endswith("-true") and trainer.precision != "32-true":
        instead = trainer.precision.replace("64-true", "32-true").replace("16-true", "16-mixed")
        raise UserError(
            f"Trainer.precision is {trainer.precision}, which would change the numbers of frozen layers too: "
            f"use {instead}."
        )
    epochs = own_epochs(make_trainer)
    if epochs is not None and epochs < 1:
        raise UserError(f"Trainer.max_epochs is {epochs}: give a number of epochs, at least 1.")
    if trainer.limit_val_batches == 0 or trainer.check_val_every_n_epoch != 1:
        raise UserError(
            "Each epoch is validated: leave Trainer.limit_val_batches and Trainer.check_val_every_n_epoch alone."
        )
    return _execution(trainer)


def make_execution(make_trainer: MakeTrainer) -> Execution:
    """Return where this process of a training runs; the first one gets it from ``check_trainer``."""
    return _execution(_make(make_trainer))


def own_epochs(make_trainer: MakeTrainer) -> int | None:
    """Return the number of epochs that the trainer was given; None: as the freeze rule recommends."""
    epochs: int | None = getattr(make_trainer, "keywords", {}).get("max_epochs")
    return epochs


def foreign_launcher(environment: Mapping[str, str]) -> str | None:
    """Return what has started this process as one of several; None if nothing has.

    >>> foreign_launcher({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"}), foreign_launcher({"SLURM_NTASKS": "1"})
    ("SLURM's srun", None)
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return "torchrun"
    interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")  # as in Lightning's SLURMEnvironment
    if environment.get("SLURM_NTASKS", "1") != "1" and not interactive:
        return "SLURM's srun"
    if environment.get("WORLD_SIZE", "1") != "1" or "LOCAL_RANK" in environment:
        return "a launcher (WORLD_SIZE or LOCAL_RANK is set)"
    return None


def _make(make_trainer: MakeTrainer) -> pl.Trainer:
    quiet_lightning()
    try:
        return make_trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except (MisconfigurationException, ImportError, ValueError, TypeError) as error:
        raise UserError(
            f"The trainer cannot be made ({first_line(error)}): "
            "change the arguments of Trainer, or use Trainer.accelerator=cpu."
        ) from error


def _execution(trainer: pl.Trainer) -> Execution:
    device = str(trainer.strategy.root_device)
    return Execution(device, str(trainer.precision), rank=trainer.global_rank, world_size=trainer.world_size)


def check_optimizer(optimizer: Optimizer) -> None:
    """Make sure that the optimizer takes its settings.

    Raises:
        UserError: it does not.
    """
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1))])
    except (ValueError, TypeError) as error:
        made: Any = optimizer
        while isinstance(made, functools.partial):
            made = made.func
        raise UserError(f"The optimizer cannot be made ({error}): change the arguments of {made.__name__}.") from error


def weight_decay_of(optimizer: Optimizer) -> float:
    """Return the weight decay that an optimizer would use: its setting or its own default; 0 if it knows none.

    >>> import functools
    >>> weight_decay_of(torch.optim.AdamW), weight_decay_of(functools.partial(torch.optim.SGD, weight_decay=0.5))
    (0.01, 0.5)
    """
    parameter = inspect.signature(optimizer).parameters.get("weight_decay")
    return 0.0 if parameter is None else float(parameter.default)


def quiet_lightning() -> None:
    """Keep Lightning's and torch's hints out of a run's log; what a user can act on, the stage says itself."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",  # the number of workers is ours, measured
        ".*Checkpoint directory .* exists and is not empty.*",  # so it is when a run is resumed
        ".*module\\(s\\) in eval mode at the start of training.*",  # the frozen ones, on purpose
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",  # Lightning inside, nothing a user can act on
        ".*Detected call of `lr_scheduler.step\\(\\)` before.*",  # Lightning's order of the first call after a resume
    ):
        warnings.filterwarnings("ignore", message=message)
