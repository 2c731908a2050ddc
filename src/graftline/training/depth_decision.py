"""How deep a training goes, where its freeze rule tries that: by its own trials, or by those of another seed."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytorch_lightning as pl
from pytorch_lightning.utilities.seed import isolate_rng

from graftline.backbones.backbone import Graft
from graftline.freezing.rule import FreezeContext, FreezeDecision, FreezeRule
from graftline.training.batchnorm import prepare_statistics
from graftline.training.fit_directory import FitDirectory
from graftline.training.known_depth import KnownDepth
from graftline.training.setup import TrainingSetup
from graftline.training.trial import Trials, make_freeze_context

logger = logging.getLogger(__name__)


def decide_depth(setup: TrainingSetup, rule: FreezeRule, context: FreezeContext) -> FreezeDecision:
    """Decide by a training's own trials, or by what is known of them.

    Args:
        setup: of the training.
        rule: that decides.
        context: that it decides by.
    """
    known = KnownDepth(setup, rule)
    decision = known.read() or rule.decide(context)
    if context.seconds_left is None:  # with a limit, it may have been the time that did not allow for more
        known.write(decision)
    return decision


def decide_depth_of(
    seed: int, setup: TrainingSetup, rule: FreezeRule, directory: FitDirectory, build: Callable[[], Graft]
) -> FreezeDecision:
    """Decide as a training with another seed does; where that goes on from a trial, this one goes on from its own.

    Args:
        seed: of the other training, whose trials are made here unless their answer is known.
        setup: of this training, which has no limit of time.
        rule: that decides.
        directory: for the checkpoints of trials.
        build: makes the network, with a new head.

    Raises:
        DivergenceError: the trial that this training is to go on from diverged.
    """
    known = KnownDepth(replace(setup, seed=seed), rule)
    decision = known.read_any()
    if decision is None:
        logger.info(f"Depths are tried with seed {seed}.")
        with isolate_rng(include_cuda=setup.execution.is_cuda):
            pl.seed_everything(seed, workers=True, verbose=False)
            other = replace(setup, graft=build(), seed=seed)
            pl.seed_everything(setup.seed, workers=True, verbose=False)  # Lightning hands it to further processes
        prepare_statistics(other, directory)
        decision = rule.decide(make_freeze_context(other, directory))
        known.write(decision)
    if decision.plans[-1].only_head:
        return replace(decision, tried=())  # it is trained with this training's seed
    _make_trials(decision, Trials(setup, directory))
    return decision


def _make_trials(decision: FreezeDecision, trials: Trials) -> None:
    """Make the trials that a decision goes on from."""
    if decision.measurement is None:
        return
    chosen, start = decision.measurement.chosen, None
    rows = [row for row in decision.measurement.rows if row.frozen_groups == chosen.frozen_groups]
    for plan, row, _ in zip(decision.plans, rows, decision.tried, strict=False):  # none, where trials were in folds
        start = trials(plan, start, row.images)
        logger.info(f"  {start.sentence}")
