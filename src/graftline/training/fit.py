"""The fit: trains, stops early, keeps the best and the last checkpoint, takes up where it left off."""

import inspect
import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

from graftline.data.loaders import Batch
from graftline.errors import UserError, first_line
from graftline.freezing.check import FIRST_STEPS
from graftline.training.module import GraftModule, Optimizer
from graftline.training.progress import FitProgress, Metrics

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
MONITOR = "val/loss"  # early stopping and the choice of the checkpoint see validation only, never the test split


@dataclass(frozen=True)
class FitHistory:
    """What came of a fit.

    Attributes:
        history: metrics of each epoch.
        best: metrics of the epoch whose weights are kept.
        seconds: wall-clock time.
        steps: optimizer steps done, those before a resume included.
    """

    history: list[Metrics]
    best: Metrics
    seconds: float
    steps: int


def fit(
    module: GraftModule,
    make_trainer: Callable[..., pl.Trainer],
    make_loaders: Callable[[int, int], tuple[DataLoader[Batch], DataLoader[Batch]]],
    *,
    directory: Path,
    on_epoch: Callable[[Metrics, int], None],
    on_start: Callable[[Metrics], None] | None = None,
    on_first_gradients: Callable[[nn.Module], None] | None = None,
    patience: int | None = None,
    ema_decay: float | None = None,
    resume: bool = False,
    threads: int | None = None,
    show_progress: bool = True,
) -> FitHistory:
    """Train ``module`` and leave the weights of the best epoch in it.

    Args:
        module: what to train.
        make_trainer: ``functools.partial`` of ``pytorch_lightning.Trainer``.
        make_loaders: (rank, number of processes) → training and validation loader of that process.
        directory: where ``best.ckpt`` and ``last.ckpt`` lie.
        on_epoch: called on rank 0 with the metrics and the step after each epoch.
        on_start: called on rank 0 with the learning rates of the first step, ``lr/LAYER`` → rate.
        on_first_gradients: called in each process with ``module.network`` when the gradients of one of the first
            optimizer steps (``freezing.contract.FIRST_STEPS``) are there; what it raises ends the fit.
        patience: epochs without a better validation loss before the fit stops; None: never.
        ema_decay: decay of the averaged weights; None: no averaging.
        resume: go on from ``last.ckpt``.
        threads: of torch during the fit; None: as they are.
        show_progress: draw the progress bar.

    Raises:
        KeyboardInterrupt: the user stopped the training; ``last.ckpt`` of the last whole epoch is there.
    """
    _quiet_lightning()
    progress = FitProgress(on_epoch, on_start, show=show_progress)
    best, last = (
        ModelCheckpoint(directory, name, monitor=monitor, save_on_train_epoch_end=True, enable_version_counter=False)
        for name, monitor in (("best", MONITOR), ("last", None))
    )
    trainer = make_trainer(
        callbacks=[progress, best, last, *_wanted(on_first_gradients, patience, ema_decay)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    start, checkpoint = time.perf_counter(), directory / "last.ckpt" if resume else None
    with _threads(threads), _plain_interrupt(), _quick_device_check():
        loaders = make_loaders(trainer.global_rank, trainer.world_size)
        trainer.fit(module, *loaders, ckpt_path=checkpoint, weights_only=True)
    module.load_state_dict(torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"])
    history = progress.history
    return FitHistory(history, min(history, key=monitored), time.perf_counter() - start, trainer.global_step)


def _wanted(
    on_first_gradients: Callable[[nn.Module], None] | None, patience: int | None, ema_decay: float | None
) -> list[pl.Callback]:
    """Return the callbacks that were asked for; arguments as for ``fit``."""
    callbacks = (
        EarlyStopping(MONITOR, patience=patience) if patience is not None else None,
        _FirstGradients(on_first_gradients) if on_first_gradients is not None else None,
        WeightAveraging(use_buffers=True, avg_fn=_ema(ema_decay)) if ema_decay is not None else None,
    )
    return [callback for callback in callbacks if callback is not None]


def _ema(decay: float) -> Callable[[Tensor, Tensor, int | Tensor], Tensor]:
    """Return the exponential moving average, which leaves alone what does not change.

    torch's own, ``decay * averaged + (1 - decay) * current``, is not bit for bit ``current`` where the two are equal,
    as they are in frozen layers, and makes fractions of BatchNorm's counters.
    """

    def average(averaged: Tensor, current: Tensor, _number: int | Tensor) -> Tensor:
        return torch.lerp(current, averaged, decay) if current.is_floating_point() else current

    return average


class _FirstGradients(pl.Callback):
    """Hands the network on in the first optimizer steps of this fit, between the backward pass and the step."""

    def __init__(self, check: Callable[[nn.Module], None]) -> None:
        self._check = check
        self._steps = 0

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:  # noqa: ARG002 - Lightning's
        if self._steps < FIRST_STEPS:
            self._steps += 1
            assert isinstance(pl_module, GraftModule)
            self._check(pl_module.network)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let torch use so many threads during the block; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quick_device_check() -> Iterator[None]:
    """Let torch ask the CUDA runtime whether there is a GPU, as it does by default.

    Each optimizer step asks. Lightning has set this variable, by which NVIDIA's NVML answers, a library that is then
    looked for on the disk each time: 0.2 ms, a good part of a head's step. What NVML is for, processes that are forked
    afterwards, does not concern us: workers come from a server process.
    """
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


@contextmanager
def _plain_interrupt() -> Iterator[None]:
    """Give Ctrl-C back as what it is: Lightning makes a SystemExit of it, and ignores further ones from there on."""
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


def weight_decay_of(optimizer: Optimizer) -> float:
    """Return the weight decay that an optimizer would use: its setting or its own default; 0 if it knows none.

    >>> import functools
    >>> weight_decay_of(torch.optim.AdamW), weight_decay_of(functools.partial(torch.optim.SGD, weight_decay=0.5))
    (0.01, 0.5)
    """
    parameter = inspect.signature(optimizer).parameters.get("weight_decay")
    return 0.0 if parameter is None else float(parameter.default)


def monitored(metrics: Metrics) -> float:
    """Return by what the best epoch is chosen, the lower the better; what is no number is worst."""
    value = metrics[MONITOR]
    return math.inf if math.isnan(value) else value


def check_trainer(make_trainer: Callable[..., pl.Trainer]) -> None:
    """Make sure that this machine can do what the trainer asks for, before anything heavy starts.

    Raises:
        UserError: no such device here, settings that contradict each other, or a training without end.
    """
    _quiet_lightning()
    for key in sorted(OURS & set(getattr(make_trainer, "keywords", {}))):
        raise UserError(f"trainer.{key} is not yours to set, a fit needs it its own way: leave it out.")
    try:
        trainer = make_trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except (MisconfigurationException, ImportError, ValueError, TypeError) as error:
        reason = first_line(error)
        raise UserError(f"The trainer cannot be made ({reason}): change trainer.*, or take trainer=cpu.") from error
    if trainer.precision.endswith("-true") and trainer.precision != "32-true":
        raise UserError(
            f"trainer.precision={trainer.precision} would change the numbers of frozen layers too: "
            f"take {trainer.precision.replace('64-true', '32-true').replace('16-true', '16-mixed')}."
        )
    given = getattr(make_trainer, "keywords", {}).get("max_epochs")
    if given is not None and given < 1:
        raise UserError(f"trainer.max_epochs is {trainer.max_epochs}: give a number of epochs, at least 1.")
    if trainer.limit_val_batches == 0 or trainer.check_val_every_n_epoch != 1:
        raise UserError("Each epoch is validated: leave trainer.limit_val_batches and check_val_every_n_epoch alone.")


def check_optimizer(optimizer: Optimizer) -> None:
    """Make sure that the optimizer takes its settings.

    Raises:
        UserError: it does not.
    """
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1))])
    except (ValueError, TypeError) as error:
        raise UserError(f"The optimizer cannot be made ({error}): change optim.*.") from error


def _quiet_lightning() -> None:
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
