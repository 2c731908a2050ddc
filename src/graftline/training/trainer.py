"""Trainer and optimizer before they are used: what this machine can do, what a fit needs, and where it will run."""

import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher

from graftline.errors import UserError, first_line
from graftline.execution import Execution
from graftline.ray_cluster import NoCluster, RayCluster
from graftline.training.launch import check_launch, current_launch, with_launch
from graftline.training.module import Optimizer
from graftline.training.optimizers import optimizer_class, settings_of, takes_recommendation, with_learning_rate
from graftline.training.sharding import FSDP2, ShardedStrategy

logger = logging.getLogger(__name__)

MakeTrainer = Callable[..., pl.Trainer]
STRATEGIES = SingleDeviceStrategy, DDPStrategy, ShardedStrategy

OURS = "a fit needs it its own way"
UNUSED = "it would have no effect here"
VALIDATED = "each epoch is validated once, at its end, so that the best can be kept"
COUNTED = "a training is counted in whole epochs, each of which is validated: use Trainer.max_epochs"
REFUSED = {  # arguments that are to stay as they are by default, and why
    "barebones": OURS,
    "callbacks": OURS,
    "check_val_every_n_epoch": VALIDATED,
    "default_root_dir": UNUSED,
    "enable_autolog_hparams": UNUSED,
    "enable_checkpointing": OURS,
    "enable_model_summary": OURS,
    "enable_progress_bar": OURS,
    "fast_dev_run": "nothing would be kept of it: use Trainer.limit_train_batches",
    "limit_predict_batches": UNUSED,
    "limit_test_batches": UNUSED,
    "log_every_n_steps": UNUSED,
    "logger": OURS,
    "max_steps": COUNTED,
    "max_time": COUNTED,
    "min_steps": COUNTED.replace("max_epochs", "min_epochs"),
    "model_registry": UNUSED,
    "num_nodes": "torchrun or SLURM's srun, which start processes on several machines, say how many",
    "num_sanity_val_steps": OURS,
    "overfit_batches": "it would validate on training images: use Trainer.limit_train_batches",
    "plugins": OURS,
    "profiler": UNUSED,
    "reload_dataloaders_every_n_epochs": UNUSED,
    "sync_batchnorm": "torch would replace timm's layers that normalize and activate by ones that only normalize",
    "use_distributed_sampler": OURS,
    "val_check_interval": VALIDATED,
}


def check_trainer(make_trainer: MakeTrainer) -> Execution:
    """Make sure that this machine can do what the trainer asks for, before anything heavy starts.

    Args:
        make_trainer: ``functools.partial`` of ``pytorch_lightning.Trainer``.

    Returns:
        Where the first process of the training runs.

    Raises:
        UserError: no such device here, settings that contradict each other, a training without end, or processes that
            were started in a way in which they cannot train together.
    """
    check_launch(os.environ)
    _check_arguments(getattr(make_trainer, "keywords", {}))
    trainer = _make(with_launch(make_trainer, current_launch()))
    strategy, is_ours = trainer.strategy, isinstance(trainer.strategy, STRATEGIES)
    if not is_ours or isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise UserError(f"Trainer.strategy must be auto, ddp or {FSDP2}, with which graftline trains: leave it out.")
    if trainer.precision.endswith("-true") and trainer.precision != "32-true":
        instead = trainer.precision.replace("64-true", "32-true").replace("16-true", "16-mixed")
        raise UserError(
            f"Trainer.precision is {trainer.precision}, which would change the numbers of frozen layers too: "
            f"use {instead}."
        )
    epochs = own_epochs(make_trainer)
    if epochs is not None and epochs < 1:
        raise UserError(f"Trainer.max_epochs is {epochs}: give a number of epochs, at least 1.")
    for name in ("limit_train_batches", "limit_val_batches"):
        if getattr(trainer, name) == 0:
            raise UserError(f"Trainer.{name} is 0, it must be above 0: each epoch trains and validates.")
    if trainer.gradient_clip_val is not None and trainer.gradient_clip_val < 0:  # torch would turn the gradients around
        raise UserError(f"Trainer.gradient_clip_val is {trainer.gradient_clip_val}, it must be at least 0.")
    if trainer.accumulate_grad_batches < 1:
        raise UserError(f"Trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, it must be at least 1.")
    return _execution(make_trainer, trainer)


def check_spread(make_trainer: MakeTrainer, cluster: NoCluster | RayCluster) -> None:
    """Make sure that a training which is one of several on a Ray cluster is one process.

    Lightning starts further ones by the command line of the first, which there is that of a worker of Ray's.

    Raises:
        UserError: it is to be several.
    """
    devices = getattr(make_trainer, "keywords", {}).get("devices", "auto")
    if isinstance(cluster, RayCluster) and _count_devices(devices) > 1:
        raise UserError(
            f"Trainer.devices is {devices}, but each of several trainings on a Ray cluster is one process: give "
            "Trainer.devices=1, or take NoCluster(), with which they take place one after the other."
        )


def _count_devices(devices: Any) -> int:
    """Return how many devices a trainer is given; all that there are count as one, as Ray shows a task one GPU at most.

    >>> [_count_devices(devices) for devices in (2, "2", [0, 1], "0,1", [3], "3,", "auto", -1)]
    [2, 2, 2, 2, 1, 1, 1, 1]
    """
    text = str(devices)
    return int(text) if text.isdigit() else len(text.strip("[],").split(","))


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """Make sure that those are left alone which a fit cannot have otherwise, or which would do nothing."""
    defaults = inspect.signature(pl.Trainer).parameters
    for name, reason in REFUSED.items():
        if arguments.get(name, defaults[name].default) not in (defaults[name].default, None):
            raise UserError(f"Trainer.{name} is not yours to set ({reason}): leave it out.")


def make_execution(make_trainer: MakeTrainer) -> Execution:
    """Return where this process of a training runs; the first one gets it from ``check_trainer``."""
    return _execution(make_trainer, _make(with_launch(make_trainer, current_launch())))


def own_epochs(make_trainer: MakeTrainer) -> int | None:
    """Return the number of epochs that the trainer was given; None: as the freeze rule recommends."""
    epochs: int | None = getattr(make_trainer, "keywords", {}).get("max_epochs")
    return epochs


def accumulated_batches(make_trainer: MakeTrainer) -> int:
    """Return of how many batches the trainer makes an optimizer step."""
    number: int | None = getattr(make_trainer, "keywords", {}).get("accumulate_grad_batches")
    return 1 if number is None else number


@contextmanager
def refused_by_lightning() -> Iterator[None]:
    """Say as a mistake what Lightning finds wrong with a trainer only when it sees the batches."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"The training cannot begin ({first_line(error)}): change the arguments of Trainer.") from error


def _make(make_trainer: MakeTrainer) -> pl.Trainer:
    quiet_lightning()
    try:
        return make_trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except (MisconfigurationException, ImportError, ValueError, TypeError) as error:
        raise UserError(
            f"The trainer cannot be made ({first_line(error)}): "
            "change the arguments of Trainer, or use Trainer.accelerator=cpu."
        ) from error


def _execution(make_trainer: MakeTrainer, trainer: pl.Trainer) -> Execution:
    return Execution(
        device=str(trainer.strategy.root_device),
        precision=str(trainer.precision),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        num_nodes=trainer.num_nodes,
        cpu_only=getattr(make_trainer, "keywords", {}).get("accelerator") == "cpu",
    )


def check_optimizer(optimizer: Optimizer) -> None:
    """Make sure that the optimizer takes its settings, and warn where nobody knows which learning rate suits it.

    Raises:
        UserError: it does not.
    """
    name = optimizer_class(optimizer).__name__
    try:
        with_learning_rate(optimizer, learning_rate=1.0)([torch.nn.Parameter(torch.zeros(1))])
    except (ValueError, TypeError) as error:
        raise UserError(f"The optimizer cannot be made ({error}): change the arguments of {name}.") from error
    if takes_recommendation(optimizer) and settings_of(optimizer) is None:
        logger.warning(f"Nobody has matched {name} with AdamW, whose learning rates it takes: {name}.lr sets its own.")


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
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # our sampler takes up there
        ".*overrides the configure_model callback.*",  # which does nothing where weights are averaged
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*The `srun` command is available on your system but is not used.*",  # who has it need not use it
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",  # Lightning inside, nothing a user can act on
        ".*Detected call of `lr_scheduler.step\\(\\)` before.*",  # Lightning's order of the first call after a resume
    ):
        warnings.filterwarnings("ignore", message=message)
