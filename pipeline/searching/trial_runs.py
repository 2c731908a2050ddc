"""The candidates of a search in MLflow: a run for each, below that of the search, which hears of each score at once."""

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from graftline.errors import UserError, first_line
from graftline.search.candidates import Candidate
from graftline.search.history import ScoredCandidate, SearchHistory
from graftline.tracking.names import STAGE
from graftline.tracking.tracking import Tracking

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

logger = logging.getLogger(__name__)

IN_LAST_ROUND = "in the last round"


class TrialRuns:
    """Gives each candidate that is scored a run, which begins with its first score; as a context manager it ends all.

    Args:
        tracking: where, with the id of the search's run.
        experiment: of these runs.
        directory: for what they keep until MLflow has it.
    """

    def __init__(self, tracking: Tracking, experiment: str, directory: Path) -> None:
        self._tracking = replace(tracking, system_metrics=False)
        self._experiment, self._directory = experiment, directory
        self._runs: dict[str, Run] = {}
        self._open = ExitStack()
        self._is_away = False

    def log(self, one: ScoredCandidate) -> None:
        """Log a score. Where a run cannot begin, as MLflow does not answer, the search goes on without such runs."""
        if (run := self._run_of(one.candidate)) is not None:
            values = {"log_loss": one.score.log_loss, "accuracy": one.score.accuracy, "seconds": one.seconds}
            run.log_metrics({f"{one.depth}/{key}": value for key, value in values.items()}, step=one.images)

    def tell_outcomes(self, history: SearchHistory) -> None:
        """Say what became of each candidate."""
        for name, run in self._runs.items():
            run.set_tags({"graftline.outcome": history.outcomes.get(name, IN_LAST_ROUND)})

    def _run_of(self, candidate: Candidate) -> "Run | None":
        if candidate.name not in self._runs and not self._is_away:
            try:
                self._runs[candidate.name] = self._open.enter_context(self._start(candidate))
            except UserError as error:
                self._is_away = True
                logger.warning(f"{candidate.name} and those that follow have no run in MLflow: {first_line(error)}.")
        return self._runs.get(candidate.name)

    def _start(self, candidate: Candidate) -> "Run":
        folder = self._directory / candidate.key
        folder.mkdir(parents=True, exist_ok=True)
        run = self._tracking.start(
            run_name=candidate.name, experiment=self._experiment, directory=folder, tags={STAGE: "search trial"}
        )
        facts = {"backbone": candidate.backbone.name, "image_size": candidate.side}
        run.log_params(facts, "".join(f"{key}: {value}\n" for key, value in facts.items()))
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)
