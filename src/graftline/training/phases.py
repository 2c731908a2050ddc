"""A training in phases: one fit after the other, each with its own freeze plan, from the best weights of the last."""

import copy
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from graftline.backbones.single_image import check_single_image
from graftline.data.loaders import DrawSampler, Loaders
from graftline.errors import UserError
from graftline.features.precision import MAX_CHANGE
from graftline.files import write_json
from graftline.freezing.check import FreezeCheck
from graftline.freezing.depth import FORWARD_PER_STEP
from graftline.freezing.evidence import most_validated, too_few_to_choose
from graftline.freezing.plan import FreezePlan
from graftline.training.budget import MOST_VALIDATED, cut_to_deadline, decoding_seconds, step_seconds, timed
from graftline.training.checkpointing import checkpointed
from graftline.training.compiling import compiled
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit import FitOptions, fit
from graftline.training.fit_directory import FitDirectory, read_checkpoint
from graftline.training.lost_process import lost_processes_named
from graftline.training.lower_rates import fit_at_lower_rates
from graftline.training.place import epochs_done
from graftline.training.recipe import Recipe
from graftline.training.results import FitHistory, PhaseResult, TrainingResult, best_of
from graftline.training.setup import TrainingSetup
from graftline.training.source_decision import choose_source, head_is_live
from graftline.training.training_source import LiveSource, TrainingSource
from graftline.training.validation_scores import score_validation

logger = logging.getLogger(__name__)


def train(
    setup: TrainingSetup,
    plans: Sequence[FreezePlan],
    directory: FitDirectory,
    *,
    events: FitEvents | None = None,
    resume: bool = False,
    finished: int = 0,
    first_judged: int | None = None,
    deadline: float | None = None,
) -> TrainingResult:
    """Fit a network as several freeze plans say, in turn; afterwards it has the best weights of all phases.

    The best are those of the lowest log loss on the validation images; where these are too few to tell, the last ones.
    A phase that begins anew with the network's own weights, since there is time after one that is enough, has to be
    likely better than that (nine in ten, image by image): of many epochs, one is lower by chance.

    A phase goes on from the best weights of the one before, or begins with the network's own where its plan says so.
    One that diverges at a rate that the user did not give is done again with a lower one (`fit_at_lower_rates`).

    Args:
        setup: what is the same in all phases.
        plans: one for each phase, at least one.
        directory: for checkpoints and what a resume needs.
        events: hears of the training; epochs and optimizer steps are counted over all phases.
        resume: go on where an earlier call left off: phases that are finished are not done again, so that what they
            unfroze stays unfrozen. Where a plan has more epochs than it had, its phase goes on. Where no epoch was
            finished, the training begins anew, with the same numbers.
        finished: so many of the first phases are done already, by trials that the training goes on from.
        first_judged: the first phase whose weights may be kept; None: the first after those, since a trial may have
            been validated on a part of the images.
        deadline: moment of ``time.monotonic`` at which the training is to end; phases that are still to be done share
            what is left. A head on cached activations takes its epochs, which are seconds. None: there is no limit.

    Raises:
        UserError: a resume whose plans have fewer phases or epochs than are done; a training that diverges; a process
            that the training needs and that is gone.
        FreezeViolationError: a frozen tensor changed, or one that is to be trained got no gradient.
    """
    if resume and deadline is None:
        _check_resumable(plans, directory)
    first_judged = finished if first_judged is None else first_judged
    if (few := _too_few(setup)) is not None:
        logger.info(f"The weights of the last epoch are kept: {few}.")
        first_judged = len(plans)
    setup = _judged_by_fewer(setup, plans, limited=deadline is not None)
    results: list[PhaseResult] = []
    best_state: dict[str, Tensor] = {}
    has_spare = any(plan.anew for plan in plans)
    scored = has_spare and few is None
    own = copy.deepcopy(setup.graft.network.state_dict()) if has_spare else {}
    for number, plan in enumerate(plans):
        phase, earlier = directory.phase(number), [result.history for result in results]
        if plan.anew:
            setup.graft.network.load_state_dict(own)
        result = _read_result(phase, plan) if resume or number < finished else None
        if result is not None:
            load_best(setup.graft.network, phase)
            if number < finished and not directory.phase(finished).last.exists():  # reported before, once that is begun
                _replay_phase(setup, plan, phase, result, events, earlier)
        else:
            end = None if deadline is None else _end_of_next(deadline, len(plans) - number)
            if len(plans) > 1:
                decided = timed(setup, [plan], end)[0].decision
                logger.info(f"{decided[0].upper()}{decided[1:]}.")
            once = partial(
                fit_phase, setup, directory=phase, events=events, earlier=earlier, deadline=end, scored=scored
            )
            steps = sum(history.steps for history in earlier)
            result = fit_at_lower_rates(once, setup, plan, phase, resume=resume, events=events, first_step=steps)
        results.append(result)
        _tell_difference(results)
        if len(plans) > 1:
            best_state = _better(best_state, results[min(first_judged, len(plans) - 1) :], setup.graft.network)
        if results[-1].history.interrupted:
            break
    if best_state:
        setup.graft.network.load_state_dict(best_state)
    return TrainingResult(tuple(results), min(first_judged, len(results) - 1))


def _judged_by_fewer(setup: TrainingSetup, plans: Sequence[FreezePlan], *, limited: bool) -> TrainingSetup:
    """Return a setup with the validation images by which epochs are judged, the same in all phases.

    Each class is there in proportion. All images judge a head on cached activations, which is validated in no time.
    """
    train, validation = (setup.version.num_images(split) for split in ("train", "validation"))
    most = MOST_VALIDATED if limited else validation
    if validation > most_validated(train) and (any(not plan.only_head for plan in plans) or head_is_live(setup)):
        most = min(most, most_validated(train))
    if validation <= most:
        return setup
    version = setup.version.part(validation=most)
    judging = version.num_images("validation")
    logger.info(f"Each epoch is judged by {judging:,} of the {validation:,} validation images.")
    return replace(setup, version=version)


def _tell_difference(results: Sequence[PhaseResult]) -> None:
    """Log by how much the last phase is better than the one before, where that has to be likely."""
    if len(results) > 1 and (difference := results[-1].difference(results[-2])) is not None:
        kept = "it is kept" if results[-1].is_better(results[-2]) else "too little to keep it"
        logger.info(f"This phase has {difference.text()} in log loss against the one before: {kept}.")


def _end_of_next(deadline: float, phases: int) -> float:
    """Return when the next of several phases is to end, which share the time that is left."""
    now = time.monotonic()
    return now + (deadline - now) / phases


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


def _fit_options(source: TrainingSource, plan: FreezePlan) -> FitOptions:
    """Return how a plan is fitted by the recipe."""
    recipe, few = source.setup.recipe, _too_few(source.setup) is not None
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


def _replay_phase(
    setup: TrainingSetup,
    plan: FreezePlan,
    directory: FitDirectory,
    result: PhaseResult,
    events: FitEvents | None,
    earlier: Sequence[FitHistory],
) -> None:
    """Report the epochs of a phase that a trial has done, as if it were trained now.

    Where only the head was trained, also apply the plan to the network and open the source: it may be the last phase,
    whose source gives the test images' logits.
    """
    listener = FitEvents() if events is None else events
    if plan.only_head:
        plan.apply(setup.graft.network)
        listener.on_source(choose_source(setup, plan, directory.source))
    first_epoch, first_step = sum(len(one.epochs) for one in earlier), sum(one.steps for one in earlier)
    history = result.history
    for number, metrics in enumerate(history.epochs, start=1):
        step = first_step + round(history.steps * number / len(history.epochs))
        listener.on_epoch({**metrics, "epoch": metrics["epoch"] + first_epoch}, step)


def load_best(network: nn.Module, directory: FitDirectory) -> None:
    """Give a network the best weights of a fit of the whole of it or of its tail, whose tensors have the same names."""
    state = read_checkpoint(directory.best)["state_dict"]
    found = {name.removeprefix("network."): value for name, value in state.items()}
    network.load_state_dict({**network.state_dict(), **found})


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
    cut = cut_to_deadline(setup, plan, deadline, step, decoding, to_decode)
    done = 0 if resumed is None or not resumed.last.exists() else _epochs_done(resumed)
    return replace(cut, epochs=done + cut.epochs)


def _loaders(source: TrainingSource, plan: FreezePlan) -> Loaders:
    """Return the loaders of training and validation images; a plan's part of an epoch is of whole steps."""
    training, validation = source.make_loaders()
    if plan.epoch_images is not None:
        assert isinstance(training.sampler, DrawSampler)
        step = source.setup.batch_size * source.setup.execution.world_size
        training.sampler.set_epoch_images(max(1, round(plan.epoch_images / step)) * step)
    return training, validation


def _check_batch(setup: TrainingSetup) -> None:
    """Make sure that the network, to which its plan is applied, can be trained on the smallest batch there is.

    Raises:
        UserError: that is one image, and it cannot.
    """
    share = setup.version.num_images("train") // setup.execution.world_size
    if min(share, setup.batch_size) == 1:
        network: Any = copy.deepcopy(setup.graft.network).to("meta")
        check_single_image(network.pretrained_cfg["architecture"], network, setup.graft.preprocessing)


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


def _check_cache(source: TrainingSource) -> float | None:
    """Return by how much cached activations change a probability, and warn where that is too much."""
    change = source.cache_change()
    if change is not None and change > MAX_CHANGE:
        logger.warning(
            f"Cached activations change a predicted probability by {change:.1e}, more than {MAX_CHANGE}: "
            "train again with Features.precision=float32."
        )
    return change


def _too_few(setup: TrainingSetup) -> str | None:
    """Return why the validation images do not tell which epoch is the best; None if they do."""
    return too_few_to_choose(tuple(setup.version.counts()["validation"].values()))


def _better(state: dict[str, Tensor], results: Sequence[PhaseResult], network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the network's state if the last phase is better than all before, else the one before."""
    return copy.deepcopy(network.state_dict()) if results and best_of(results) == len(results) - 1 else state


def _read_result(directory: FitDirectory, plan: FreezePlan) -> PhaseResult | None:
    """Return what came of a phase; None if it is not finished, was interrupted, or was planned with other epochs."""
    if not directory.result.exists():
        return None
    result = PhaseResult.from_json(json.loads(directory.result.read_text(encoding="utf-8")))
    return result if result.planned_epochs == plan.epochs and not result.history.interrupted else None


def _epochs_done(directory: FitDirectory) -> int:
    """Return how many whole epochs the last checkpoint of a fit has behind it."""
    return epochs_done(read_checkpoint(directory.last))


def _check_resumable(plans: Sequence[FreezePlan], directory: FitDirectory) -> None:
    """Make sure that no phase has done more than its plan says now.

    Raises:
        UserError: one has.
    """
    number = 0
    while directory.phase(number).last.exists():
        done = _epochs_done(directory.phase(number))
        planned = plans[number].epochs if number < len(plans) else 0
        if done > planned:
            what = f"phase {number + 1} of the run" if number > 0 or len(plans) > 1 else "the run"
            raise UserError(
                f"Trainer.max_epochs leaves {what} fewer epochs ({planned}) than are done ({done}): "
                "give more, or leave it out."
            )
        number += 1
