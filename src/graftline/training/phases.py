"""A training in phases: one fit after the other, each with its own freeze plan, from the best weights of the last."""

import copy
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from graftline.backbones.backbone import Graft
from graftline.errors import UserError
from graftline.files import write_json
from graftline.freezing.plan import FreezePlan
from graftline.training.fit import FitHistory, monitored
from graftline.training.fitting import PhaseResult, TrainingSetup
from graftline.training.progress import Metrics
from graftline.training.source import TrainingSource

logger = logging.getLogger(__name__)

DONE_FILE = "fit.json"  # in the folder of a phase: what came of it; there once the phase is finished


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training.

    Attributes:
        fit: all phases as one.
        last: the last phase; earlier ones would hold their activations on disk.
        best_phase: which phase's weights the network has, from 0.
    """

    fit: FitHistory
    last: PhaseResult
    best_phase: int

    @property
    def inputs(self) -> TrainingSource:
        """What was trained on what, in the last phase."""
        return self.last.inputs


def fit_phases(
    fitting: TrainingSetup,
    graft: Graft,
    plans: Sequence[FreezePlan],
    directory: Path,
    *,
    on_epoch: Callable[[Metrics, int], None],
    on_start: Callable[[Metrics, int], None],
    on_source: Callable[[TrainingSource], None],
    resume: bool = False,
) -> TrainingResult:
    """Fit a network as several freeze plans say, in turn; afterwards it has the best weights of all phases.

    Args:
        fitting: what is the same in all phases.
        graft: network, preprocessing and weights.
        plans: one for each phase.
        directory: for checkpoints; each phase after the first has a sub-folder.
        on_epoch: called on rank 0 with an epoch's metrics and the optimizer steps done, both counted over all phases.
        on_start: called on rank 0 with the learning rates of a phase's first step, and the number of that step.
        on_source: called in each phase once it is known what is trained on what.
        resume: go on where an earlier call left off: phases that are finished are not done again, so that what they
            unfroze stays unfrozen. Where a plan has more epochs than it had, its phase goes on.

    Raises:
        UserError: a resume whose plans have fewer phases or epochs than are done.
    """
    if resume:
        _check_resumable(plans, directory)
    fits: list[FitHistory] = []
    best_state: dict[str, Tensor] = {}
    for number, plan in enumerate(plans):
        folder = phase_folder(directory, number)
        done = _read(folder, plan) if resume and number + 1 < len(plans) else None
        if done is not None:
            load_best(graft.network, folder)
            fits.append(done)
        else:
            if len(plans) > 1:
                logger.info(f"{plan.decision[0].upper()}{plan.decision[1:]}.")
            before = _joined(fits)
            fitted = fitting.run(
                graft,
                plan,
                folder,
                on_epoch=partial(_tell_epoch, on_epoch, before),
                on_start=partial(_tell_start, on_start, before),
                on_source=on_source,
                resume=resume and (folder / "last.ckpt").exists(),
            )
            fits.append(fitted.fit)
        if len(plans) > 1:
            write_json(folder / DONE_FILE, {"planned_epochs": plan.epochs, "fit": asdict(fits[-1])})
            best_state = _better(best_state, fits, graft.network)
    if best_state:
        graft.network.load_state_dict(best_state)
    best_phase = min(range(len(fits)), key=lambda number: monitored(fits[number].best))
    return TrainingResult(_joined(fits), fitted, best_phase)


def phase_folder(directory: Path, number: int) -> Path:
    """Return where the checkpoints of a phase lie, from 0; a training of one phase has them where others' first has."""
    return directory if number == 0 else directory / f"phase-{number + 1}"


def _better(state: dict[str, Tensor], fits: Sequence[FitHistory], network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the network's state if the last fit is the best so far, else the one before."""
    losses = [monitored(fit.best) for fit in fits]
    return state if min(losses) < losses[-1] else copy.deepcopy(network.state_dict())


def _tell_epoch(on_epoch: Callable[[Metrics, int], None], before: FitHistory, metrics: Metrics, step: int) -> None:
    on_epoch(_shift(metrics, before), before.steps + step)


def _tell_start(on_start: Callable[[Metrics, int], None], before: FitHistory, rates: Metrics) -> None:
    on_start(rates, before.steps)


def load_best(network: nn.Module, folder: Path) -> None:
    """Give a network the best weights of a fit of the whole of it or of its tail, whose tensors have the same names."""
    state = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    found = {name.removeprefix("network."): value for name, value in state.items()}
    network.load_state_dict({**network.state_dict(), **found})


def _joined(fits: Sequence[FitHistory]) -> FitHistory:
    """Return several fits as one."""
    whole = FitHistory([], {}, 0.0, 0)
    for fit in fits:
        history = [*whole.history, *(_shift(metrics, whole) for metrics in fit.history)]
        whole = FitHistory(history, min(history, key=monitored), whole.seconds + fit.seconds, whole.steps + fit.steps)
    return whole


def _shift(metrics: Metrics, before: FitHistory) -> Metrics:
    return {**metrics, "epoch": metrics["epoch"] + len(before.history)}


def _read(folder: Path, plan: FreezePlan) -> FitHistory | None:
    """Return what came of a phase; None if it is not finished, or was planned with other epochs than now."""
    file = folder / DONE_FILE
    if not file.exists():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    return FitHistory(**content["fit"]) if content["planned_epochs"] == plan.epochs else None


def _check_resumable(plans: Sequence[FreezePlan], directory: Path) -> None:
    """Make sure that no phase has done more than its plan says now.

    Raises:
        UserError: one has.
    """
    number = 0
    while (file := phase_folder(directory, number) / "last.ckpt").exists():
        done = int(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["epoch"]) + 1
        planned = plans[number].epochs if number < len(plans) else 0
        if done > planned:
            what = f"phase {number + 1} of the run" if number > 0 or len(plans) > 1 else "the run"
            raise UserError(
                f"trainer.max_epochs leaves {what} fewer epochs ({planned}) than are done ({done}): "
                "give more, or leave it out."
            )
        number += 1
