"""A training in phases: one after the other, each with its own freeze plan, from the best weights of the last."""

import copy
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from graftline.errors import UserError
from graftline.freezing.evidence import most_validated
from graftline.freezing.plan import FreezePlan
from graftline.training.budget import MOST_VALIDATED, timed
from graftline.training.events import FitEvents
from graftline.training.fit_directory import FitDirectory, read_checkpoint
from graftline.training.lower_rates import fit_at_lower_rates
from graftline.training.phase import fit_phase, load_best
from graftline.training.place import epochs_done
from graftline.training.results import FitHistory, PhaseResult, TrainingResult, best_of
from graftline.training.setup import TrainingSetup
from graftline.training.source_decision import choose_source, head_is_live

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
    network, few = setup.graft.network, setup.too_few_to_choose
    first_judged = finished if first_judged is None else first_judged
    if few is not None:
        logger.info(f"The weights of the last epoch are kept: {few}.")
        first_judged = len(plans)
    setup = _judged_by_fewer(setup, plans, limited=deadline is not None)
    scored = few is None and any(plan.anew for plan in plans)
    results: list[PhaseResult] = []
    best_state: dict[str, Tensor] = {}
    for result in _phases(setup, plans, directory, events, resume, finished, deadline, scored=scored):
        results.append(result)
        _tell_difference(results)
        if len(plans) > 1:
            best_state = _better(best_state, results[min(first_judged, len(plans) - 1) :], network)
        if result.history.interrupted:
            break
    if best_state:
        network.load_state_dict(best_state)
    return TrainingResult(tuple(results), min(first_judged, len(results) - 1))


def _phases(
    setup: TrainingSetup,
    plans: Sequence[FreezePlan],
    directory: FitDirectory,
    events: FitEvents | None,
    resume: bool,
    finished: int,
    deadline: float | None,
    *,
    scored: bool,
) -> Iterator[PhaseResult]:
    """Fit phase after phase, or take up what came of one that is finished; the network then has its best weights."""
    network, earlier = setup.graft.network, list[FitHistory]()
    own = copy.deepcopy(network.state_dict()) if any(plan.anew for plan in plans) else {}
    for number, plan in enumerate(plans):
        phase = directory.phase(number)
        if plan.anew:
            network.load_state_dict(own)
        result = _read_result(phase, plan) if resume or number < finished else None
        if result is not None:
            load_best(network, phase)
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
        earlier.append(result.history)
        yield result


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


def _read_result(directory: FitDirectory, plan: FreezePlan) -> PhaseResult | None:
    """Return what came of a phase; None if it is not finished, was interrupted, or was planned with other epochs."""
    if not directory.result.exists():
        return None
    result = PhaseResult.from_json(json.loads(directory.result.read_text(encoding="utf-8")))
    return result if result.planned_epochs == plan.epochs and not result.history.interrupted else None


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


def _end_of_next(deadline: float, phases: int) -> float:
    """Return when the next of several phases is to end, which share the time that is left."""
    now = time.monotonic()
    return now + (deadline - now) / phases


def _tell_difference(results: Sequence[PhaseResult]) -> None:
    """Log by how much the last phase is better than the one before, where that has to be likely."""
    if len(results) > 1 and (difference := results[-1].difference(results[-2])) is not None:
        kept = "it is kept" if results[-1].is_better(results[-2]) else "too little to keep it"
        logger.info(f"This phase has {difference.text()} in log loss against the one before: {kept}.")


def _better(state: dict[str, Tensor], results: Sequence[PhaseResult], network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the network's state if the last phase is better than all before, else the one before."""
    return copy.deepcopy(network.state_dict()) if results and best_of(results) == len(results) - 1 else state


def _check_resumable(plans: Sequence[FreezePlan], directory: FitDirectory) -> None:
    """Make sure that no phase has done more than its plan says now.

    Raises:
        UserError: one has.
    """
    number = 0
    while directory.phase(number).last.exists():
        done = epochs_done(read_checkpoint(directory.phase(number).last))
        planned = plans[number].epochs if number < len(plans) else 0
        if done > planned:
            what = f"phase {number + 1} of the run" if number > 0 or len(plans) > 1 else "the run"
            raise UserError(
                f"Trainer.max_epochs leaves {what} fewer epochs ({planned}) than are done ({done}): "
                "give more, or leave it out."
            )
        number += 1
