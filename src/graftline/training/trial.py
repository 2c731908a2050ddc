"""Trying a boundary: a short fit as a freeze plan says, after which the network is as it was.

Letters: B batch, C channels, H height, W width, N images of the validation split, K classes.
"""

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Iterator

import numpy as np
import pytorch_lightning as pl
import torch.nn.functional as F
from pytorch_lightning.utilities.seed import isolate_rng
from rich.progress import Progress
from torch import nn

from graftline.backbones.layers import HEAD, group_names
from graftline.console import progress
from graftline.data.loaders import Batch
from graftline.freezing.measurement import BoundaryTrial, Floats, in_words
from graftline.freezing.plan import FreezePlan
from graftline.freezing.rule import FreezeContext
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit_directory import FitDirectory
from graftline.training.phases import fit_phase
from graftline.training.results import PhaseResult
from graftline.training.setup import TrainingSetup
from graftline.training.trainer import own_epochs
from graftline.training.training_source import TrainingSource


def make_freeze_context(setup: TrainingSetup, directory: FitDirectory) -> FreezeContext:
    """Return what a freeze rule decides by, for a training that is still to begin.

    Args:
        setup: of the training.
        directory: for the checkpoints of short fits, which do not stay.
    """
    num_classes = len(setup.version.class_names)
    return FreezeContext(
        setup.graft.network,
        len(setup.version.samples("train").paths) / num_classes,
        num_classes,
        setup.graft.weights.pretrained,
        own_epochs(setup.make_trainer),
        functools.partial(try_boundary, setup, directory),
    )


def try_boundary(setup: TrainingSetup, directory: FitDirectory, plan: FreezePlan) -> BoundaryTrial:
    """Fit a network as a plan says; afterwards weights and random numbers are as if nothing had been tried.

    Args:
        setup: of the training. The fit is done by this process alone, on one device.
        directory: for the checkpoints, which do not stay.
        plan: what is trained, and for how many epochs.
    """
    network = setup.graft.network
    boundary = [*group_names(network), HEAD][plan.frozen_groups]
    start = time.perf_counter()
    with fitted(setup, directory, plan, f"Epochs, {in_words(boundary)}") as fit:
        seconds = time.perf_counter() - start
        losses, hits = score_validation(fit.setup, fit.source)
    result = fit.result
    return BoundaryTrial(
        boundary=boundary,
        plan=plan,
        trained_parameters=plan.describe(network)["trained_parameters"],
        losses=losses,
        hits=hits,
        cached=result.cache_change is not None,
        pass_seconds=seconds - result.history.seconds,
        fit_seconds=result.history.seconds,
    )


@dataclasses.dataclass(frozen=True)
class TrialFit:
    """A fit that leaves nothing behind: by which setup, on what, and what came of it."""

    setup: TrainingSetup
    source: TrainingSource
    result: PhaseResult


@contextlib.contextmanager
def fitted(setup: TrainingSetup, directory: FitDirectory, plan: FreezePlan, description: str) -> Iterator[TrialFit]:
    """Fit a network as a plan says, for the block only: weights and random numbers are then as they were.

    Args:
        setup: of the training. The fit is done by this process alone, on one device.
        directory: for the checkpoints, which do not stay.
        plan: what is trained, and for how many epochs.
        description: of the bar of the epochs.

    Yields:
        The fit. During the block the network has the weights of the best epoch.
    """
    alone = functools.partial(setup.make_trainer, devices=1, num_nodes=1, strategy="auto")
    execution = dataclasses.replace(setup.execution, rank=0, world_size=1)
    setup = dataclasses.replace(setup, make_trainer=alone, execution=execution)
    with (
        _weights_kept(setup.graft.network),
        isolate_rng(include_cuda=execution.is_cuda),
        _emptied(directory) as folder,
        _TrialEvents(description, plan.epochs) as events,
    ):
        result = fit_phase(setup, plan, folder, events=events, show_progress=False)
        yield TrialFit(setup, events.source, result)


def score_validation(setup: TrainingSetup, source: TrainingSource) -> tuple[Floats, Floats]:
    """Return the log loss (N,) and whether it is right (N,) of each validation image, in the split's order."""
    scores = _ImageScores(source.network)
    trainer = setup.make_trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    _, validation = source.make_loaders()
    trainer.validate(scores, validation, verbose=False)
    return np.concatenate(scores.losses), np.concatenate(scores.hits)


class _TrialEvents(FitEvents, contextlib.ExitStack):
    """Shows a bar of the epochs, which begins when that of the frozen pass is gone, and keeps the source."""

    source: TrainingSource

    def __init__(self, description: str, epochs: int) -> None:
        super().__init__()
        self._description, self._epochs = description, epochs
        self._bar: Progress | None = None

    def on_source(self, source: TrainingSource) -> None:
        self.source = source
        self._bar = self.enter_context(progress(self._description, self._epochs))

    def on_epoch(self, metrics: Metrics, step: int) -> None:  # noqa: ARG002 - the event's signature
        assert self._bar is not None
        self._bar.advance(self._bar.task_ids[0])


@contextlib.contextmanager
def _emptied(directory: FitDirectory) -> Iterator[FitDirectory]:
    """Yield an empty folder for a trial; what a killed one has left there goes, and so does all at the end."""
    shutil.rmtree(directory.trial, ignore_errors=True)
    try:
        yield FitDirectory(directory.trial)
    finally:
        shutil.rmtree(directory.trial, ignore_errors=True)


@contextlib.contextmanager
def _weights_kept(network: nn.Module) -> Iterator[None]:
    """Give a network the weights and buffers again that it had before the block."""
    initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    yield
    network.load_state_dict(initial)


class _ImageScores(pl.LightningModule):
    """Keeps what a network makes of each image of a loader, whatever the trainer's device and precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.losses: list[Floats] = []
        self.hits: list[Floats] = []

    def validation_step(self, batch: Batch, batch_index: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Score a batch: inputs (B, C, H, W) or (B, …), logits (B, K)."""
        outputs = self.network(batch["image"])
        logits = (outputs[0] if isinstance(outputs, tuple) else outputs).double()
        self.losses.append(F.cross_entropy(logits, batch["label"], reduction="none").cpu().numpy())
        self.hits.append((logits.argmax(dim=1) == batch["label"]).double().cpu().numpy())
