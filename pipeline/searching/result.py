"""What a search leaves for people: the table of what was tried, the entries in MLflow, and the typed result."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from graftline.console import format_table, say
from graftline.evaluation.metrics import format_interval, format_score
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.searching.trial_runs import IN_LAST_ROUND
from graftline.pipeline.searching.winner import ENSEMBLE_FOLDER, HEAD_FOLDER
from graftline.pipeline.training.result import TrainResult
from graftline.report.run_note import markdown_table
from graftline.report.search_figure import Picture
from graftline.search.candidates import Candidate
from graftline.search.history import HEAD, WHOLE, Depth, SearchHistory
from graftline.search.ledger import TimeLedger, format_seconds
from graftline.search.outlook import Outlook, look_ahead
from graftline.search.rounds import NO_TIME
from graftline.training.fit_directory import FitDirectory
from graftline.training.results import FitHistory, PhaseResult, log_loss, monitored

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

MORE_SECONDS = 1800.0  # of the outlook
TRIAL_COLUMNS = ("candidate", "images", "accuracy", "log loss", "against the chosen", "seconds", "outcome")
MOST_TOLD = 50  # candidates, as MLflow takes 8,000 letters of Markdown
EARLY = 0.8  # of the time: a training that ended before was not ended by it


@dataclass(frozen=True, kw_only=True)
class SearchResult(TrainResult):
    """What the stage ``search`` did: that of the winner's training, and which one that is.

    Attributes:
        chosen: network and image size.
    """

    chosen: Candidate


@dataclass(frozen=True)
class Found:
    """All that came of a search.

    Attributes:
        history: what was tried.
        chosen: the winner.
        trained: of it.
        ledger: of the time.
        minutes: that there were.
        interrupted: whether Ctrl-C ended it.
    """

    history: SearchHistory
    chosen: Candidate
    trained: TrainResult
    ledger: TimeLedger
    minutes: float
    interrupted: bool = False

    @property
    def validation(self) -> dict[str, float]:
        """The winner's metrics on the validation split, of its best epoch."""
        metrics: dict[str, float] = self.trained.predictor.card["validation"]
        return metrics

    @cached_property
    def phases(self) -> list[tuple[float, FitHistory]]:
        """The phases of the winner's training, each with the seconds since the search began after which it was done.

        Of several models they are those of the first.
        """
        folder = self.trained.directory
        folder = folder / "members" / "1" if folder.name == ENSEMBLE_FOLDER else folder
        first, found = FitDirectory(RunDirectory(folder).checkpoints), list[tuple[float, FitHistory]]()
        while (file := first.phase(len(found)).result).exists():
            history = PhaseResult.from_json(json.loads(file.read_text(encoding="utf-8"))).history
            found.append((self.ledger.now - (time.time() - file.stat().st_mtime), history))
        return found

    @property
    def outlook(self) -> Outlook | str:
        """What more time would likely bring."""
        return outlook_of([history for _, history in self.phases])

    @property
    def sentence(self) -> str:
        """The outlook, in words, and what was not tried."""
        sentence = self.outlook if isinstance(self.outlook, str) else self.outlook.sentence
        if self.trained.directory.name == HEAD_FOLDER:
            why = "The search was interrupted" if self.interrupted else "There was no time for more"
            sentence = f"{why}: the head of the winner alone is trained."
        elif self.interrupted:
            sentence = "The search was interrupted: the winner is as the best epoch until then left it."
        elif self.ledger.spans[-1].end < EARLY * self.ledger.budget:
            sentence = "The winner's training ended before the time did; how deep it was tried stands above."
        untried = sum(outcome == NO_TIME for outcome in self.history.outcomes.values())
        if untried == 0:
            return sentence
        return f"{sentence} {untried} candidate{'s were' if untried > 1 else ' was'} not tried, for lack of time."

    def picture(self) -> Picture:
        """Return what is drawn."""
        count = sum(self.trained.version.counts()["validation"].values())
        curve = [
            (end - history.seconds + after, metrics["val/accuracy"])
            for end, history in self.phases
            for after, metrics in zip(_ends(history), history.epochs, strict=True)
        ]
        return Picture(
            self.history,
            self.chosen,
            self.ledger.spans,
            60 * self.minutes,
            self.validation,
            count,
            curve,
            self.sentence,
        )


def outlook_of(phases: Sequence[FitHistory]) -> Outlook | str:
    """Return what more time would likely bring to a training: its last phase would have it, those before are done."""
    if not phases:
        return look_ahead([], [], MORE_SECONDS)
    *earlier, last = phases
    before = min((monitored(history.best) for history in earlier), default=math.inf)
    losses = [monitored(metrics) for metrics in last.epochs]
    kept = monitored(last.best)  # an epoch of the first half may be lower by chance
    curve = [(end, loss) for end, loss in zip(_ends(last), losses, strict=True) if loss >= kept]
    return look_ahead([end for end, _ in curve], [loss for _, loss in curve], MORE_SECONDS, before)


def _ends(history: FitHistory) -> list[float]:
    """Return after how many seconds each epoch of a phase was done, at least a thousandth: the first is not at zero."""
    each = history.seconds / max(1, len(history.epochs))
    return [max(number * each, 1e-3) for number in range(1, len(history.epochs) + 1)]


def print_trials(history: SearchHistory, chosen: Candidate) -> None:
    """Print what was tried in a table, the best of the largest round first; then, why others were not."""
    tried, rows = _tried(history), _trial_rows(history, chosen)
    title = "Heads, each training image scored by a fit without it; 95 % intervals of the log loss"
    say(f"\n{format_table(title, TRIAL_COLUMNS, rows)}")
    _print_whole(history, chosen)
    reasons: dict[str, list[str]] = {}
    for one in history.candidates:
        if one not in tried:
            reasons.setdefault(history.outcomes.get(one.name, "not tried"), []).append(one.name)
    for reason, names in reasons.items():
        say(f"{reason[0].upper()}{reason[1:]}: {', '.join(names)}.")


def _tried(history: SearchHistory) -> list[Candidate]:
    """Return the candidates that were scored."""
    return [one for one in history.candidates if history.last(one.name) is not None]


def _trial_rows(history: SearchHistory, chosen: Candidate) -> list[tuple[str, ...]]:
    """Return a row for each candidate that was scored, the best of the largest round first."""
    return [_cells(history, one, chosen) for one in sorted(_tried(history), key=lambda one: _rank(history, one))]


def _cells(history: SearchHistory, candidate: Candidate, chosen: Candidate) -> tuple[str, ...]:
    """Return a row of the table."""
    last = history.last(candidate.name)
    assert last is not None
    return (
        candidate.name,
        f"{last.images:,}",
        f"{last.score.accuracy:.3f}",
        f"{last.score.log_loss:.3f}",
        _against(history, candidate, chosen, HEAD),
        f"{history.seconds(candidate.name):.0f}",
        "chosen" if candidate is chosen else history.outcomes.get(candidate.name, IN_LAST_ROUND),
    )


def _against(history: SearchHistory, candidate: Candidate, chosen: Candidate, depth: Depth) -> str:
    more = history.difference(candidate.name, chosen.name, depth)
    return "" if more is None or candidate is chosen else f"{more.low:+z.3f} to {more.high:+z.3f}"


def _print_whole(history: SearchHistory, chosen: Candidate) -> None:
    """Print what the candidates that were trained as a whole came to, where there are any."""
    columns = ("candidate", "accuracy", "log loss", "against the chosen", "seconds")
    rows = [
        (
            one.candidate.name,
            f"{one.score.accuracy:.3f}",
            f"{one.score.log_loss:.3f}",
            _against(history, one.candidate, chosen, WHOLE),
            f"{one.seconds:.0f}",
        )
        for one in history.scored
        if one.depth == WHOLE
    ]
    if rows:
        say(f"\n{format_table('Trained as a whole, scored on training images that were held out', columns, rows)}")


def _rank(history: SearchHistory, candidate: Candidate) -> tuple[float, float]:
    last = history.last(candidate.name)
    return (-last.images, last.score.log_loss) if last is not None else (0.0, candidate.macs)


def log_search(run: "Run", found: Found) -> None:
    """Log what the search came to."""
    metrics = {
        "validation/accuracy": found.validation["val/accuracy"],
        "validation/log_loss": log_loss(found.validation),
    }
    run.log_metrics({**metrics, "search/seconds": found.ledger.now}, step=0)
    run.describe(_note(found))
    run.set_tags({"graftline.chosen": found.chosen.name, "graftline.winner_run_id": found.trained.run_id})


def _note(found: Found) -> str:
    """Return what the page of the search's run shows first."""
    validation = format_score("accuracy", found.validation["val/accuracy"])
    facts = [
        f"- **Validation**: {validation}, which the choice has not seen",
        f"- **Trained as run**: {found.trained.run_id}",
        f"- **Time**: {format_seconds(found.ledger.now)} of {format_seconds(found.ledger.budget)}",
    ]
    scores = found.trained.scores
    if "accuracy" in scores:
        right = scores["accuracy"]
        test = f"{format_score('accuracy', right.value)} ({format_interval('accuracy', right)})"
        facts.insert(1, f"- **Test**: {test}")
    table = markdown_table(TRIAL_COLUMNS, _trial_rows(found.history, found.chosen)[:MOST_TOLD])
    return "\n\n".join([f"**Chosen: {found.chosen.name}**", "\n".join(facts), found.sentence, table])


def summarize_search(found: Found, run_id: str, picture: str) -> SearchResult:
    """Return what goes into ``result.json`` and into the table at the end."""
    trained, validation = found.trained, found.validation
    say(found.sentence)
    return SearchResult(
        run_id=trained.run_id,
        model_uri=trained.model_uri,
        directory=trained.directory,
        version=trained.version,
        scores=trained.scores,
        chosen=found.chosen,
        facts={
            **trained.facts,
            "search_run_id": run_id,
            "chosen": {"backbone": found.chosen.backbone.name, "image_size": found.chosen.side},
            "validation": {"accuracy": validation["val/accuracy"], "log_loss": log_loss(validation)},
            "outlook": found.sentence,
            "interrupted": found.interrupted,
            "trials": [_row(found.history, one) for one in found.history.candidates],
        },
        metrics=trained.metrics,
        table=[
            ("chosen", found.chosen.name),
            ("validation", f"{format_score('accuracy', validation['val/accuracy'])}, which the choice has not seen"),
            *trained.table,
            ("time", f"{format_seconds(found.ledger.now)} of {format_seconds(found.ledger.budget)}"),
            ("picture", picture),
        ],
    )


def _row(history: SearchHistory, candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as what JSON knows."""
    rounds = [one for one in history.scored if one.candidate is candidate]
    return {
        "backbone": candidate.backbone.name,
        "image_size": candidate.side,
        "outcome": history.outcomes.get(candidate.name, IN_LAST_ROUND),
        "scores": [
            {
                "depth": one.depth,
                "images": one.images,
                "log_loss": one.score.log_loss,
                "accuracy": one.score.accuracy,
                "seconds": round(one.seconds, 2),
            }
            for one in rounds
        ],
    }
