"""The fit: trains, stops early, keeps the best and the last checkpoint, takes up where it left off."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from graftline.data.loaders import Loaders
from graftline.errors import TooLittleMemoryError, writing
from graftline.freezing.check import FIRST_STEPS
from graftline.training.allocator import freed_memory_kept
from graftline.training.averaging import AveragedWeights
from graftline.training.budget import Clock
from graftline.training.events import FitEvents
from graftline.training.fit_directory import FitDirectory, read_checkpoint, tensors_only
from graftline.training.module import GraftModule
from graftline.training.place import EpochPlace, TimedCheckpoint
from graftline.training.progress import FitProgress
from graftline.training.results import MONITOR, FitHistory, is_judged
from graftline.training.trainer import MakeTrainer, quiet_lightning, refused_by_lightning

# what Lightning does on its own, we do ourselves: tracking, progress, and loaders for each process
_OURS = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
}


@dataclass(frozen=True)
class FitOptions:
    """How to fit, whatever the network and the images.

    Attributes:
        seed: of what the network and the mixing of images draw in each epoch.
        patience: epochs without a better validation loss before the fit stops, counted in their second half;
            None: never.
        keep_last: keep the weights of the last epoch, not of the best, where the validation images are too few to tell
            which that is.
        ema_decay: decay of the averaged weights; None: no averaging.
        checkpoint_minutes: after which ``last.ckpt`` is written within an epoch, too; None: at its end only.
        seconds: after which the fit ends, at the end of the epoch that is nearest; None: when its epochs are done.
        threads: of torch during the fit; None: as they are.
    """

    seed: int = 0
    patience: int | None = None
    keep_last: bool = False
    ema_decay: float | None = None
    checkpoint_minutes: float | None = None
    seconds: float | None = None
    threads: int | None = None


def fit(
    module: GraftModule,
    make_trainer: MakeTrainer,
    loaders: Loaders,
    directory: FitDirectory,
    options: FitOptions = FitOptions(),
    *,
    events: FitEvents | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> FitHistory:
    """Train ``module`` and leave the weights of the best epoch in it (`KeptCheckpoint`).

    Args:
        module: what to train.
        make_trainer: ``functools.partial`` of ``pytorch_lightning.Trainer``.
        loaders: of the training and the validation images of this process.
        directory: where ``best.ckpt`` and ``last.ckpt`` lie.
        options: how.
        events: hears of the fit.
        resume: go on from ``last.ckpt``, if there is one: what follows is bit for bit what would have followed, if that
            is of a whole epoch and there are as many processes. Else each image of the epoch's rest is seen once.
        show_progress: draw the progress bar.

    Raises:
        DivergenceError: a loss is no number or has grown beyond use; ``last.ckpt`` of the last sound epoch is there.
        TooLittleMemoryError: it takes more memory than the GPU has.
        KeyboardInterrupt: the user stopped the training, and ``events`` want no part of it; ``last.ckpt`` of the last
            whole epoch is there.
    """
    quiet_lightning()
    events = FitEvents() if events is None else events
    progress = FitProgress(events, show=show_progress)
    always = [progress, EpochDraws(options.seed), EpochPlace(loaders[0]), FirstGradients(events)]
    trainer = make_trainer(callbacks=[*always, *_checkpoints(directory, options), *_wanted(options)], **_OURS)
    start, checkpoint = time.perf_counter(), directory.last if resume and directory.last.exists() else None
    interrupted = False
    try:
        with _surroundings(directory, options.threads), tensors_only(directory.last):
            _fit(trainer, module, loaders, checkpoint)
    except KeyboardInterrupt as interrupt:
        interrupted = _can_end(trainer, progress, directory) and events.on_interrupt(interrupt)
        if not interrupted:
            raise
    epoch = _take_best(module, directory)
    took = time.perf_counter() - start
    (kept,) = [metrics for metrics in progress.epochs if metrics["epoch"] == epoch]
    return FitHistory(progress.epochs, kept, took, trainer.global_step, interrupted)


def _fit(trainer: pl.Trainer, module: GraftModule, loaders: Loaders, checkpoint: Path | None) -> None:
    with suppress(torch.OutOfMemoryError):  # kept as a cause, it would keep what lies on the GPU
        trainer.fit(module, *loaders, ckpt_path=checkpoint, weights_only=True)
        return
    raise TooLittleMemoryError


def _can_end(trainer: pl.Trainer, progress: FitProgress, directory: FitDirectory) -> bool:
    """Tell whether a fit that is interrupted has an epoch to keep, and nobody who would go on without it."""
    return bool(progress.epochs) and directory.best.exists() and trainer.world_size == 1


def _take_best(module: GraftModule, directory: FitDirectory) -> int:
    """Give a module the weights of the best epoch, and return which it is."""
    best = read_checkpoint(directory.best)
    module.take_back()
    module.load_state_dict(best["state_dict"])
    epoch: int = best["epoch"]
    return epoch


@contextmanager
def _surroundings(directory: FitDirectory, threads: int | None) -> Iterator[None]:
    """Let Lightning's fit run with our settings, and its errors be ours."""
    with (
        freed_memory_kept(),
        _threads(threads),
        plain_interrupt(),
        _quick_device_check(),
        refused_by_lightning(),
        writing(directory.path),
    ):
        yield


def _checkpoints(directory: FitDirectory, options: FitOptions) -> list[pl.Callback]:
    """Return what writes the checkpoints of the epoch to keep and of the last one, within an epoch too where asked."""
    always: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    monitor, mode = ("epoch", "max") if options.keep_last else (MONITOR, "min")
    wanted: list[pl.Callback] = [
        KeptCheckpoint(directory.path, directory.best.stem, monitor=monitor, mode=mode, **always),
        MovableCheckpoint(directory.path, directory.last.stem, **always),
    ]
    minutes = options.checkpoint_minutes
    return wanted if minutes is None else [*wanted, TimedCheckpoint(directory, minutes)]


def _wanted(options: FitOptions) -> list[pl.Callback]:
    """Return what stops a fit early or averages its weights, as far as it is wanted."""
    wanted: list[pl.Callback] = []
    if options.patience is not None:
        wanted.append(PatientStopping(MONITOR, patience=options.patience))
    if options.seconds is not None:
        wanted.append(Clock(options.seconds))
    if options.ema_decay is not None:
        wanted.append(AveragedWeights(options.ema_decay))
    return wanted


class EpochDraws(pl.Callback):
    """Makes all that an epoch draws depend on seed, epoch and process only, so that a resumed fit draws the same.

    That is dropout, stochastic depth and the mixing of images by the global generators; the order of the images is the
    sampler's. A fit that takes up within an epoch draws what it likes from there on.

    Args:
        seed: any number of at least 0.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 - Lightning's signature
        batch: Any,  # noqa: ARG002 - likewise
        batch_idx: int,
    ) -> None:
        """Seed the global generators before an epoch's first batch; the loader may have drawn from torch's by then."""
        if batch_idx > 0:
            return
        sequence = np.random.SeedSequence([self._seed, trainer.current_epoch, trainer.global_rank])
        of_python, of_numpy, of_torch = sequence.generate_state(3).tolist()
        random.seed(of_python)
        np.random.seed(of_numpy)  # noqa: NPY002 - timm's Mixup draws from NumPy's global generator
        torch.manual_seed(of_torch)


class MovableCheckpoint(ModelCheckpoint):
    """Checkpoint that knows its best epoch again where the folder was moved since.

    Lightning forgets it where the folder has another path, and writes the next epoch over it, be that better or worse.
    """

    @property
    def state_key(self) -> str:
        """The key of its state in a checkpoint: the one that Lightning's own class has, as of an earlier graftline."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take that of the checkpoint over, with the files where they are now."""
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: self._here(state_dict[name]) for name in paths}
        scores = {self._here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": scores, "dirpath": self.dirpath})

    def _here(self, path: str) -> str:
        """Return a file of that name in this folder; an empty path stands for none."""
        assert self.dirpath is not None
        return str(Path(self.dirpath, Path(path).name)) if path else path


class KeptCheckpoint(MovableCheckpoint):
    """Checkpoint of the epoch that is kept: the best one of those that are judged, and until then the last one.

    One that was judged is still the one to be better than where a resume has more epochs.
    """

    _holds_judged = False

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Tell whether an epoch takes the place of the one that is held."""
        judged = is_judged(trainer.current_epoch, trainer.max_epochs or 0)
        is_kept = not self._holds_judged or (judged and super().check_monitor_top_k(trainer, current))
        self._holds_judged = self._holds_judged or judged
        return is_kept

    def state_dict(self) -> dict[str, Any]:
        """Return the state for the checkpoint."""
        return {**super().state_dict(), "holds_judged": self._holds_judged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take that of the checkpoint over; one of an earlier graftline judged all epochs."""
        super().load_state_dict(state_dict)
        self._holds_judged = state_dict.get("holds_judged", True)


class PatientStopping(EarlyStopping):
    """Early stopping that does not stop before the learning rate has fallen.

    At a high rate the validation loss wanders, and a better one comes when the rate falls: a fit that is stopped before
    was not seen at its best. So only the second half of the epochs counts; a cosine is at half of its peak there.

    A resume with other epochs counts anew, one with the same epochs ends at once where the fit had stopped.
    """

    _max_epochs: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """Tell a fit that had stopped from one that was given other epochs."""
        if trainer.max_epochs != self._max_epochs:
            self._max_epochs, self.wait_count = trainer.max_epochs, 0
        elif self.wait_count >= max(1, self.patience):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the state for the checkpoint, with the number of epochs that the fit was to have."""
        return {**super().state_dict(), "max_epochs": self._max_epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take that of the checkpoint over; one of an earlier graftline does not say how many epochs there were."""
        super().load_state_dict(state_dict)
        self._max_epochs = state_dict.get("max_epochs")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count an epoch of the second half."""
        if is_judged(trainer.current_epoch, trainer.max_epochs or 0):
            super().on_train_epoch_end(trainer, pl_module)


class FirstGradients(pl.Callback):
    """Shows the network in the first optimizer steps of a fit, between the backward pass and the step.

    Args:
        events: its ``on_gradients`` is called; what it raises ends the fit.
    """

    def __init__(self, events: FitEvents) -> None:
        self._events = events
        self._steps = 0

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """Show the network."""
        if self._steps < FIRST_STEPS:
            self._steps += 1
            assert isinstance(pl_module, GraftModule)
            self._events.on_gradients(pl_module.network)


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
def plain_interrupt() -> Iterator[None]:
    """Give Ctrl-C back as what it is: Lightning makes a SystemExit of it, and ignores further ones from there on."""
    try:
        yield
    except SystemExit as error:
        interrupt = error.__context__
        if not isinstance(interrupt, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise type(interrupt)(*interrupt.args) from None  # SIGTERM's is a kind of its own
