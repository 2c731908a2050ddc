"""What a search leaves for people: the table of what was tried, the entries in MLflow, and the typed result."""

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftline.bundle.layout import read_description
from graftline.console import print_table, say
from graftline.pipeline.run_directory import RunDirectory
from graftline.pipeline.stage import StageResult
from graftline.pipeline.train_result import TrainResult
from graftline.report.search_figure import Picture
from graftline.search.candidates import Candidate
from graftline.search.ledger import Ledger, in_words
from graftline.search.outlook import Outlook, look_ahead
from graftline.search.scored import Trials
from graftline.training.fit_directory import FitDirectory
from graftline.training.results import PhaseResult

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

MORE_SECONDS = 1800.0  # of the outlook
FRESH = (
    "The search has seen training images only: the validation score is not biased by it (it has chosen the epoch, as in "
    "any training)."
)


@dataclass(frozen=True, kw_only=True)
class SearchResult(StageResult):
    """What the stage ``search`` did.

    Attributes:
        trained: the winner.
        chosen: its network and image size.
    """

    trained: TrainResult
    chosen: Candidate


@dataclass(frozen=True)
class Found:
    """All that came of a search.

    Attributes:
        trials: what was tried.
        chosen: the winner.
        trained: of it.
        ledger: of the time.
        minutes: that there were.
    """

    trials: Trials
    chosen: Candidate
    trained: TrainResult
    ledger: Ledger
    minutes: float

    @property
    def validation(self) -> dict[str, float]:
        """The winner's metrics on the validation split, of its best epoch."""
        metrics: dict[str, float] = read_description(self.trained.bundle)["card"]["validation"]
        return metrics

    @property
    def outlook(self) -> Outlook | str:
        """What more time would likely bring."""
        first = FitDirectory(RunDirectory(self.trained.directory).checkpoints)
        seconds, losses = list[float](), list[float]()
        number, before = 0, 0.0
        while (file := first.phase(number).result).exists():
            history = PhaseResult.from_json(json.loads(file.read_text(encoding="utf-8"))).history
            each = history.seconds / max(1, len(history.epochs))
            seconds += [before + each * (epoch + 1) for epoch in range(len(history.epochs))]
            losses += [metrics["val/loss"] for metrics in history.epochs]
            number, before = number + 1, before + history.seconds
        return look_ahead(seconds, losses, MORE_SECONDS)

    @property
    def sentence(self) -> str:
        """The outlook, in words."""
        return self.outlook if isinstance(self.outlook, str) else self.outlook.sentence

    def picture(self) -> Picture:
        """Return what is drawn."""
        count = sum(self.trained.version.counts()["validation"].values())
        return Picture(
            self.trials, self.chosen, self.ledger.spans, self.minutes * 60, self.validation, count, self.sentence
        )


def print_trials(trials: Trials, chosen: Candidate) -> None:
    """Print what was tried in a table, the best of the largest round first."""
    rows = []
    for candidate in sorted(trials.candidates, key=lambda one: _rank(trials, one)):
        last = trials.last(candidate.name)
        outcome = "chosen" if candidate is chosen else trials.outcomes.get(candidate.name, "in the last round")
        if last is None:
            rows.append((candidate.name, "", "", "", "", "", outcome))
            continue
        more = trials.difference(candidate.name, chosen.name)
        against = "" if more is None or candidate is chosen else f"{more.low:+.3f} to {more.high:+.3f}"
        score = last.score
        rows.append(
            (
                candidate.name,
                f"{last.images:,}",
                f"{score.accuracy:.3f}",
                f"{score.log_loss:.3f}",
                against,
                f"{trials.seconds(candidate.name):.1f}",
                outcome,
            )
        )
    print_table(
        "Candidates, scored out of fold on training images; 95 % intervals of the log loss",
        ("candidate", "images", "accuracy", "log loss", "against the chosen", "seconds", "outcome"),
        rows,
    )


def _rank(trials: Trials, candidate: Candidate) -> tuple[float, float]:
    last = trials.last(candidate.name)
    return (-last.images, last.score.log_loss) if last is not None else (math.inf, candidate.macs)


def log_search(run: "Run", found: Found) -> None:
    """Log what the search came to."""
    metrics = {
        "validation/accuracy": found.validation["val/accuracy"],
        "validation/log_loss": found.validation["val/loss"],
    }
    run.log_metrics({**metrics, "search/seconds": found.ledger.now}, step=0)
    run.set_tags({"graftline.chosen": found.chosen.name, "graftline.winner_run_id": found.trained.run_id})


def summarize_search(found: Found, run_id: str, picture: str) -> SearchResult:
    """Return what goes into ``result.json`` and into the table at the end."""
    trained, validation = found.trained, found.validation
    say(found.sentence)
    say(FRESH)
    return SearchResult(
        trained=trained,
        chosen=found.chosen,
        facts={
            **trained.facts,
            "search_run_id": run_id,
            "chosen": {"backbone": found.chosen.backbone.name, "image_size": found.chosen.side},
            "validation": {"accuracy": validation["val/accuracy"], "log_loss": validation["val/loss"]},
            "outlook": found.sentence,
            "trials": [_row(found.trials, one) for one in found.trials.candidates],
        },
        metrics=trained.metrics,
        table=[
            ("chosen", found.chosen.name),
            *trained.table,
            ("time", f"{in_words(found.ledger.now)} of {in_words(found.ledger.budget)}"),
            ("picture", picture),
        ],
    )


def _row(trials: Trials, candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as what JSON knows."""
    rounds = [one for one in trials.scored if one.candidate is candidate]
    return {
        "backbone": candidate.backbone.name,
        "image_size": candidate.side,
        "outcome": trials.outcomes.get(candidate.name, "in the last round"),
        "scores": [
            {
                "images": one.images,
                "log_loss": one.score.log_loss,
                "accuracy": one.score.accuracy,
                "seconds": round(one.seconds, 2),
            }
            for one in rounds
        ],
    }
