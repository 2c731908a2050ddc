"""Lower rates: a phase that diverges at a recommended learning rate begins anew with a third of it."""

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import replace

from graftline.errors import DivergenceError
from graftline.files import write_json
from graftline.freezing.plan import FreezePlan
from graftline.training.events import FitEvents
from graftline.training.fit_directory import FitDirectory
from graftline.training.optimizers import takes_recommendation
from graftline.training.results import PhaseResult
from graftline.training.setup import TrainingSetup

logger = logging.getLogger(__name__)

FACTOR = 3  # half a decade: what people race rates in
AT_MOST = 2  # times: a ninth of the recommended rate; what diverges there does so for another reason


def fit_at_lower_rates(
    fit: Callable[..., PhaseResult],
    setup: TrainingSetup,
    plan: FreezePlan,
    directory: FitDirectory,
    *,
    resume: bool,
    events: FitEvents | None = None,
    first_step: int = 0,
) -> PhaseResult:
    """Fit a phase; where it diverges at a rate that the user did not give, do so anew from its first weights, slower.

    Every process of a distributed training sees the same divergence, so all of them begin anew together.

    Args:
        fit: fits as a plan says, and goes on from the checkpoint in ``directory`` if its keyword ``resume`` says so.
        setup: of the training, whose network has the phase's first weights.
        plan: of the phase, with the recommended learning rate.
        directory: of the phase; it keeps how often the rate was lowered, so that a resume takes the lower one.
        resume: go on where an earlier call left off.
        events: hears of each new beginning.
        first_step: of the phase, counted over all phases.

    Raises:
        DivergenceError: the rate is the user's, or it was lowered often enough.
    """
    if not takes_recommendation(setup.optimizer):
        return fit(plan, resume=resume)
    lowered = _read(directory) if resume else 0
    if not resume and setup.execution.rank == 0:
        directory.lowered.unlink(missing_ok=True)
    first = copy.deepcopy(setup.graft.network.state_dict())
    while True:
        try:
            return fit(replace(plan, learning_rate=plan.learning_rate / FACTOR**lowered), resume=resume)
        except DivergenceError as error:
            if lowered == AT_MOST:
                raise
            lowered, resume = lowered + 1, False
            setup.graft.network.load_state_dict(first)
            if setup.execution.rank == 0:
                if events is not None:  # before the files: whoever is killed in between tells it once more
                    events.on_begin_anew(first_step)
                _begin_anew(directory, lowered)
            logger.warning(f"{error.what}: it begins anew with a third of that.")


def _read(directory: FitDirectory) -> int:
    """Return how often the rate of a phase was lowered so far."""
    if not directory.lowered.exists():
        return 0
    times: int = json.loads(directory.lowered.read_text(encoding="utf-8"))["times"]
    return times


def _begin_anew(directory: FitDirectory, lowered: int) -> None:
    """Leave nothing from which a resume would go on at the old rate, then note the new one: in this order.

    Whoever is killed in between diverges once more, and lowers the rate then.
    """
    for file in (directory.last, directory.best):
        file.unlink(missing_ok=True)
    write_json(directory.lowered, {"times": lowered})
