"""One phase of a training: a fit as one freeze plan says, on images or on cached activations."""

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import nn

from graftline.backbones.single_image import check_single_image
from graftline.data.loaders import Loaders, draw_batches
from graftline.features.precision import MAX_CHANGE
from graftline.files import write_json
from graftline.freezing.check import FreezeCheck
from graftline.freezing.depth import FORWARD_PER_STEP
from graftline.freezing.plan import FreezePlan
from graftline.training.budget import cut_to_deadline
from graftline.training.checkpointing import checkpointed
from graftline.training.compiling import compiled
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit import FitOptions, fit
from graftline.training.fit_directory import FitDirectory, read_checkpoint
from graftline.training.image_seconds import decoding_seconds, step_seconds
from graftline.training.lost_process import lost_processes_named
from graftline.training.place import epochs_done, passes_done
from graftline.training.recipe import Recipe
from graftline.training.results import FitHistory, PhaseResult
from graftline.training.setup import TrainingSetup
from graftline.training.source_decision import choose_source
from graftline.training.trainer import accumulated_batches
from graftline.training.training_source import LiveSource, TrainingSource
from graftline.training.validation_scores import score_validation

logger = logging.getLogger(__name__)


def fit_phase(
    setup: TrainingSetup,
    plan: FreezePlan,
    directory: FitDirectory,
    *,
    events: FitEvents | None = None,
    earlier: Sequence[FitHistory] = (),
    resume: bool = False,
    deadline: float | None = None,
    scored: bool = False,
    show_progress: bool = True,
) -> PhaseResult:
    """Fit a network as one freeze plan says; afterwards it has the weights of the best epoch.

    Args:
        setup: of the training.
        plan: which part is trained.
        directory: for the checkpoints and what a resume needs.
        events: hears of the fit.
        earlier: phases whose epochs and optimizer steps are counted in.
        resume: go on from the last checkpoint in ``directory``, if there is one.
        deadline: moment of ``time.monotonic`` at which it is to end, but for a head on cached activations; None:
            whenever its epochs are done.
        scored: whether each validation image is scored in the end, so that another phase can be compared.
        show_progress: draw the progress bar.

    Raises:
        FreezeViolationError: a frozen tensor changed, or one that is to be trained got no gradient.
    """
    setup, planned_epochs = setup.for_plan(plan), plan.epochs
    plan.apply(setup.graft.network, frozen_statistics=setup.frozen_statistics)
    _check_batch(setup)
    freeze_check = _make_freeze_check(setup, plan, directory, resume=resume)
    source = choose_source(setup, plan, directory.source)
    if deadline is not None and (not plan.only_head or isinstance(source, LiveSource)):
        plan = _cut(source, plan, deadline, directory if resume else None, scored=scored)
    listener = _PhaseEvents(FitEvents() if events is None else events, freeze_check, earlier)
    listener.on_source(source)
    with lost_processes_named(), _run_as(setup.recipe, source, plan):
        history = fit(
            setup.make_module(source.network, plan),
            partial(setup.make_trainer, max_epochs=plan.epochs),
            _loaders(source, plan),
            directory,
            _fit_options(source, plan),
            events=listener,
            resume=resume,
            show_progress=show_progress,
        )
    freeze_check.check(setup.graft.network)
    change = _check_cache(source)
    losses = score_validation(setup, source)[0].tolist() if scored else None
    record = freeze_check.record()
    result = PhaseResult(planned_epochs, history, source.sentence, source.augmented, record, change, losses)
    if setup.execution.rank == 0:
        write_json(directory.result, asdict(result))
    return result


def load_best(network: nn.Module, directory: FitDirectory) -> None:
    """Give a network the best weights of a fit of the whole of it or of its tail, whose tensors have the same names."""
    state = read_checkpoint(directory.best)["state_dict"]
    found = {name.removeprefix("network."): value for name, value in state.items()}
    network.load_state_dict({**network.state_dict(), **found})


def _make_freeze_check(setup: TrainingSetup, plan: FreezePlan, directory: FitDirectory, *, resume: bool) -> FreezeCheck:
    """Make the freeze check before the first step; a resume is held to that of the first start."""
    network, file = setup.graft.network, directory.freeze_check
    if resume and file.exists():
        freeze_check = FreezeCheck.from_json(json.loads(file.read_text(encoding="utf-8")))
        freeze_check.check(network)
        return freeze_check
    freeze_check = FreezeCheck.of(network, plan, frozen_statistics=setup.frozen_statistics)
    if setup.execution.rank == 0:
        write_json(file, freeze_check.to_json())
    return freeze_check


def _check_batch(setup: TrainingSetup) -> None:
    """Make sure that the network, to which its plan is applied, can be trained on the smallest batch there is.

    Raises:
        UserError: that is one image, and it cannot.
    """
    share = setup.version.num_images("train") // setup.execution.world_size
    if min(share, setup.batch_size) == 1:
        network: Any = copy.deepcopy(setup.graft.network).to("meta")
        check_single_image(network.pretrained_cfg["architecture"], network, setup.graft.preprocessing)


def _cut(
    source: TrainingSource, plan: FreezePlan, deadline: float, resumed: FitDirectory | None, *, scored: bool = False
) -> FreezePlan:
    """Return the plan for the time that is left, but for that of the scores; a resume goes on."""
    setup, step, decoding, to_decode = source.setup, step_seconds(source), 0.0, None
    if isinstance(source, LiveSource):
        decoding, to_decode = decoding_seconds(setup), source.images_to_decode()
    if scored:
        each = step / FORWARD_PER_STEP + (decoding if to_decode is None else 0.0)
        deadline -= setup.version.num_images("validation") * each
    done, seen = 0, 0.0
    if resumed is not None and resumed.last.exists():
        last = read_checkpoint(resumed.last)
        done = epochs_done(last)
        seen = passes_done(last, setup.version.num_images("train"), accumulated_batches(setup.make_trainer))
    return cut_to_deadline(setup, plan, deadline, step, decoding, to_decode, done, seen)


def _fit_options(source: TrainingSource, plan: FreezePlan) -> FitOptions:
    """Return how a plan is fitted by the recipe."""
    recipe, few = source.setup.recipe, source.setup.too_few_to_choose is not None
    return FitOptions(
        seed=source.setup.seed,
        patience=None if few else recipe.patience,
        keep_last=few,
        ema_decay=recipe.ema_decay,
        checkpoint_minutes=recipe.checkpoint_minutes,
        seconds=plan.seconds,
        threads=source.threads,
    )


@contextmanager
def _run_as(recipe: Recipe, source: TrainingSource, plan: FreezePlan) -> Iterator[None]:
    """Let a network run as a recipe says during the block; a head on cached activations is left as it is."""
    is_small = plan.only_head and not isinstance(source, LiveSource)
    checkpoints = recipe.grad_checkpointing and isinstance(source, LiveSource)
    with checkpointed(source.network, on=checkpoints), compiled(source.network, on=recipe.compile and not is_small):
        yield


def _loaders(source: TrainingSource, plan: FreezePlan) -> Loaders:
    """Return the loaders of training and validation images; a plan's part of an epoch is of whole steps."""
    training, validation = source.make_loaders()
    if plan.epoch_images is not None:
        batches = draw_batches(training)
        steps = max(1, round(plan.epoch_images / batches.images_per_step))
        batches.sampler.set_epoch_images(steps * batches.images_per_step)
    return training, validation


def _check_cache(source: TrainingSource) -> float | None:
    """Return by how much cached activations change a probability, and warn where that is too much."""
    change = source.cache_change()
    if change is not None and change > MAX_CHANGE:
        logger.warning(
            f"Cached activations change a predicted probability by {change:.1e}, more than {MAX_CHANGE}: "
            "train again with Features.precision=float32."
        )
    return change


class _PhaseEvents(FitEvents):
    """Shows the first gradients to the freeze check, and hands all on, counted from the first phase on."""

    def __init__(self, listener: FitEvents, freeze_check: FreezeCheck, earlier: Sequence[FitHistory]) -> None:
        self._listener = listener
        self._freeze_check = freeze_check
        self._epochs = sum(len(history.epochs) for history in earlier)
        self._steps = sum(history.steps for history in earlier)

    def on_source(self, source: TrainingSource) -> None:
        self._listener.on_source(source)

    def on_start(self, learning_rates: Metrics, step: int) -> None:
        self._listener.on_start(learning_rates, self._steps + step)

    def on_gradients(self, network: nn.Module) -> None:
        self._freeze_check.check_gradients(network)
        self._listener.on_gradients(network)

    def on_epoch(self, metrics: Metrics, step: int) -> None:
        self._listener.on_epoch({**metrics, "epoch": metrics["epoch"] + self._epochs}, self._steps + step)

    def on_interrupt(self, interrupt: KeyboardInterrupt) -> bool:
        return self._listener.on_interrupt(interrupt)
