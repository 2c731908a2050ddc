"""The freeze rule ``measured``: tries boundaries from the head down with short fits, until going deeper no longer pays.

Letters: N images of the validation split.
"""

import contextlib
import dataclasses
import functools
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch.nn.functional as F
from pytorch_lightning.utilities.seed import isolate_rng
from rich.progress import Progress
from torch import nn

from graftline.backbones.backbone import Graft
from graftline.backbones.layers import HEAD, group_names
from graftline.console import progress
from graftline.data.loaders import Batch
from graftline.errors import UserError
from graftline.freezing.plan import FreezePlan, depth_in_words, plan_from_depth
from graftline.freezing.rules import FreezeContext, check_advice
from graftline.training.fitting import PhaseResult, TrainingSetup
from graftline.training.measurement import BoundaryResult, BoundaryTrial, DepthMeasurement, Difference, Floats, in_words
from graftline.training.source import TrainingSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """Tries one boundary after another from the head down, and takes the last that paid (Hydra target).

    A deeper boundary pays if its log loss on the validation split is lower than that of the best one so far, with a
    paired 95 % interval that excludes 0. After ``patience`` boundaries in a row that did not pay, the search ends.

    Attributes:
        epochs: of each short fit.
        patience: boundaries in a row that do not pay before the search ends.
        head_epochs: recommended for the whole fit where only the head is trained.
        deeper_epochs: recommended for the whole fit where more is trained.
        head_learning_rate: of short and whole fit where only the head is trained.
        stage_learning_rate: where the last layer group is trained too.
        whole_learning_rate: where nothing is frozen; between these two the rate falls geometrically.
        random_epochs: recommended where the weights are random: nothing is measured, and nothing frozen.
        random_learning_rate: likewise.
        max_seconds: no boundary is begun that would end later, if it takes as long as the last one; None: no limit.
    """

    epochs: int = 8
    patience: int = 2
    head_epochs: int = 30
    deeper_epochs: int = 12
    head_learning_rate: float = 0.01
    stage_learning_rate: float = 0.001
    whole_learning_rate: float = 0.0003
    random_epochs: int = 60
    random_learning_rate: float = 0.001
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        check_advice(self.head_epochs, self.head_learning_rate)
        check_advice(self.deeper_epochs, self.stage_learning_rate)
        check_advice(self.epochs, self.whole_learning_rate)
        check_advice(self.random_epochs, self.random_learning_rate, "freeze.random")
        if self.patience < 1:
            raise UserError(f"freeze.patience is {self.patience}, it must be at least 1.")
        if self.max_seconds is not None and not self.max_seconds > 0:  # also catches NaN
            raise UserError(f"freeze.max_seconds is {self.max_seconds}, it must be above 0.")

    def measure(
        self, graft: Graft, context: FreezeContext, fitting: TrainingSetup, directory: Path
    ) -> DepthMeasurement:
        """Try boundaries and choose one; afterwards weights and random numbers are as if nothing had been tried.

        Args:
            graft: network, preprocessing and weights.
            context: a user's own number of epochs bounds that of the short fits too.
            fitting: all that the fits share. Each short one is done by this process alone, on one device.
            directory: for temporary checkpoints.
        """
        if not context.pretrained:
            return self._unmeasured(graft.network, context)
        epochs = self.epochs if context.epochs is None else min(self.epochs, context.epochs)
        logger.info(
            f"Measuring how much of the network to train: {epochs} epochs at each boundary, from the head down."
        )
        trials, unpaid, start = list[BoundaryTrial](), 0, time.perf_counter()
        for frozen_groups in range(len(group_names(graft.network)), -1, -1):
            trial = self.try_boundary(graft, fitting, frozen_groups, epochs, directory)
            best = trials[-1 - unpaid] if trials else trial
            difference = Difference.of(trial.losses, best.losses)
            logger.info(_line(trial, best, difference))
            trials.append(trial)
            unpaid = 0 if trial is best or difference.is_below_zero else unpaid + 1
            if stopped := self._stopped(trial, unpaid, time.perf_counter() - start):
                break
        rows = tuple(BoundaryResult.of(trial, trials[-1 - unpaid]) for trial in trials)
        plan = self._plan(graft.network, rows[-1 - unpaid].frozen_groups, _reason(rows, rows[-1 - unpaid]))
        return DepthMeasurement(rows, context.finalize(graft.network, plan), len(trials[0].losses), stopped)

    def try_boundary(
        self, graft: Graft, fitting: TrainingSetup, frozen_groups: int, epochs: int, directory: Path
    ) -> BoundaryTrial:
        """Fit the network with so many frozen layer groups; afterwards it has the weights that it had before.

        Args:
            graft: network, preprocessing and weights.
            fitting: what else the fit needs; its trainer's devices and epochs are not used.
            frozen_groups: 0 to the number of layer groups below the head.
            epochs: of the fit.
            directory: for temporary checkpoints.
        """
        alone = {"devices": 1, "num_nodes": 1, "strategy": "auto"}  # further processes begin with the whole fit
        make_trainer = functools.partial(fitting.make_trainer, **alone, max_epochs=epochs)
        fitting = dataclasses.replace(fitting, make_trainer=make_trainer)
        boundary = [*group_names(graft.network), HEAD][frozen_groups]
        plan = dataclasses.replace(self._plan(graft.network, frozen_groups, f"tried: {boundary}"), epochs=epochs)
        with _weights_kept(graft.network), isolate_rng():
            pl.seed_everything(fitting.seed, workers=True, verbose=False)  # each trial as if it were the only one
            fitted, seconds = _fit(graft, plan, fitting, f"Epochs, {in_words(boundary)}", directory)
            losses, hits = per_image(fitted.inputs, fitting)
        return BoundaryTrial(
            boundary=boundary,
            plan=plan,
            trained_parameters=plan.describe(graft.network)["trained_parameters"],
            losses=losses,
            hits=hits,
            cached=fitted.inputs.network is not graft.network,
            pass_seconds=seconds - fitted.fit.seconds,
            fit_seconds=fitted.fit.seconds,
        )

    def learning_rate(self, frozen_groups: int, num_groups: int) -> float:
        """Return the learning rate for a boundary.

        >>> rule = Measured(head_learning_rate=0.1, stage_learning_rate=0.01, whole_learning_rate=0.0001)
        >>> [round(rule.learning_rate(frozen_groups, 3), 6) for frozen_groups in (3, 2, 1, 0)]
        [0.1, 0.01, 0.001, 0.0001]
        """
        if frozen_groups == num_groups:
            return self.head_learning_rate
        share = (num_groups - 1 - frozen_groups) / (num_groups - 1) if num_groups > 1 else 1.0
        return float(self.stage_learning_rate * (self.whole_learning_rate / self.stage_learning_rate) ** share)

    def _plan(self, network: nn.Module, frozen_groups: int, why: str) -> FreezePlan:
        num_groups = len(group_names(network))
        return plan_from_depth(
            network,
            frozen_groups,
            f"{why}: {depth_in_words(network, frozen_groups)}",
            epochs=self.head_epochs if frozen_groups == num_groups else self.deeper_epochs,
            learning_rate=self.learning_rate(frozen_groups, num_groups),
        )

    def _unmeasured(self, network: nn.Module, context: FreezeContext) -> DepthMeasurement:
        """Freeze nothing, for nothing is worth keeping."""
        plan = self._plan(network, 0, "the weights are random, there is nothing to keep and nothing to measure")
        plan = dataclasses.replace(plan, epochs=self.random_epochs, learning_rate=self.random_learning_rate)
        return DepthMeasurement((), context.finalize(network, plan), 0, "the weights are random")

    def _stopped(self, trial: BoundaryTrial, unpaid: int, seconds: float) -> str:
        """Return why the search ends here; empty if it does not."""
        if unpaid == self.patience:
            return f"{unpaid} in a row did not pay" if unpaid > 1 else "the last one did not pay"
        if trial.plan.frozen_groups == 0:
            return "nothing is left to unfreeze"
        if self.max_seconds is not None and seconds + trial.seconds > self.max_seconds:
            return f"the next one would not end within freeze.max_seconds={self.max_seconds:g}"
        return ""


def _reason(rows: Sequence[BoundaryResult], chosen: BoundaryResult) -> str:
    """Return what was measured in words: the chosen boundary, and against it the head alone and the deeper ones."""
    others = [row for row in rows if row.frozen_groups < chosen.frozen_groups or row is rows[0] is not chosen]
    own = f"measured, validation log loss {chosen.log_loss:.3f} with {in_words(chosen.boundary)}"
    return ", ".join([own, *(f"{row.more_log_loss.text()} with {in_words(row.boundary)}" for row in others)])


def _fit(
    graft: Graft, plan: FreezePlan, fitting: TrainingSetup, description: str, directory: Path
) -> tuple[PhaseResult, float]:
    """Return a fit and its seconds, the frozen pass included; its checkpoints, large for large networks, do not stay.

    The bar of the epochs begins when that of the frozen pass is gone.
    """
    directory.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=".measured-", dir=directory) as folder, contextlib.ExitStack() as stack:
        bars: list[Progress] = []
        fitted = fitting.run(
            graft,
            plan,
            Path(folder),
            on_source=lambda _: bars.append(stack.enter_context(progress(description, plan.epochs))),
            on_epoch=lambda _metrics, _step: bars[0].advance(bars[0].task_ids[0]),
            show_progress=False,
        )
    return fitted, time.perf_counter() - start


@contextlib.contextmanager
def _weights_kept(network: nn.Module) -> Iterator[None]:
    """Give a network the weights and buffers again that it had before the block."""
    initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    yield
    network.load_state_dict(initial)


def per_image(inputs: TrainingSource, fitting: TrainingSetup) -> tuple[Floats, Floats]:
    """Return the log loss (N,) and whether it is right (N,) of each validation image, in the split's order."""
    answers = _Answers(inputs.network)
    trainer = fitting.make_trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    _, validation = inputs.make_loaders(0, 1)
    trainer.validate(answers, validation, verbose=False)
    return np.concatenate(answers.losses), np.concatenate(answers.hits)


class _Answers(pl.LightningModule):
    """Keeps what a network makes of each image of a loader, whatever the trainer's device and precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.losses: list[Floats] = []
        self.hits: list[Floats] = []

    def validation_step(self, batch: Batch, batch_index: int) -> None:  # noqa: ARG002 - Lightning's signature
        outputs = self.network(batch["image"])
        logits = (outputs[0] if isinstance(outputs, tuple) else outputs).double()
        self.losses.append(F.cross_entropy(logits, batch["label"], reduction="none").cpu().numpy())
        self.hits.append((logits.argmax(dim=1) == batch["label"]).double().cpu().numpy())


def _line(trial: BoundaryTrial, best: BoundaryTrial, difference: Difference) -> str:
    """Return what is said when a trial is over."""
    against = "" if trial is best else f", {difference.text()} against {in_words(best.boundary)}"
    how = f"{trial.pass_seconds:.1f} s frozen pass" if trial.cached else "live"
    return (
        f"  {in_words(trial.boundary)}: {trial.trained_parameters:,} parameters, accuracy {trial.hits.mean():.3f}, "
        f"log loss {trial.losses.mean():.3f}{against}; {how}, {trial.fit_seconds:.1f} s fit"
    )
