"""What the stage ``ensemble`` leaves for people: the run's name and description, the report, and the typed result."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from graftline.bundle.ensemble import Ensemble
from graftline.data.version import DatasetVersion
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.grid import GridRow, verdict_notes
from graftline.evaluation.metrics import Interval, metrics_json
from graftline.evaluation.selection import Selection
from graftline.evaluation.slices import Slice
from graftline.pipeline.ensembles.members import Members, counted, shared_backbone
from graftline.pipeline.evaluating.beyond_scores import BeyondScores
from graftline.pipeline.program import program
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.runs.missing import Known, missing_of_ensemble
from graftline.pipeline.runs.stage_summaries import find_summaries
from graftline.pipeline.training.result import MOST_PROBABLE_ANSWER, NOT_TESTED, TrainResult, accuracy_in_words
from graftline.report.content import Calibrated, MembersAndCrops, Report
from graftline.report.grid_tables import crops_in_words, sentence
from graftline.report.notebook import ScoresTable
from graftline.report.run_note import run_note
from graftline.report.run_report import write_report

Choose: TypeAlias = Literal["greedy", "weighted", "all", "soup", "greedy_soup"]
"""How members are chosen."""

SOUPS = ("soup", "greedy_soup")  # ways to choose that average weights, not probabilities
KINDS: Mapping[Choose, str] = {
    "greedy": "greedy ensemble",
    "weighted": "weighted ensemble",
    "all": "ensemble",
    "soup": "soup",
    "greedy_soup": "greedy soup",
}


@dataclass(frozen=True, kw_only=True)
class EnsembleResult(TrainResult):
    """What the stage ``ensemble`` made, beside what a training gives.

    Attributes:
        selection: which members were chosen.
        rows: the best member with one crop, and the ensemble, on the test images; none where there are none.
    """

    selection: Selection
    rows: Sequence[GridRow]


@dataclass(frozen=True)
class EnsembleOutcome:
    """All that came of choosing among members; no ``result`` and no ``rows`` where there were no test images.

    Attributes:
        files: of the stage.
        version: the dataset version.
        members: that were chosen from.
        selection: which ones were.
        choose: how.
        predictor: the ensemble, as it was saved.
        result: of its test.
        rows: the best member with one crop, and the ensemble.
        beyond: what the test tells beyond the scores.
    """

    files: RunDirectory
    version: DatasetVersion
    members: Members
    selection: Selection
    choose: Choose
    predictor: Ensemble
    result: EvaluationResult | None = None
    rows: Sequence[GridRow] = ()
    beyond: BeyondScores = BeyondScores()  # noqa: RUF009 - immutable

    @property
    def name(self) -> str:
        """What is special about the run: how many of which networks are averaged, and how."""
        labels = [self.members.labels[number] for number in self._averaged_members]
        of_logits = ", mean of logits" if self.predictor.average == "logits" else ""
        return f"{KINDS[self.choose]} of {counted(labels)}, {crops_in_words(self.predictor.crops)}{of_logits}"

    @property
    def scores(self) -> Mapping[str, Interval]:
        """The scores of the test split; empty where it has no images."""
        return {} if self.result is None else self.result.scores

    @property
    def slices(self) -> Sequence[Slice]:
        """Scores on parts of the test images; none where there is nothing to divide them by."""
        return () if self.beyond.slices is None else self.beyond.slices.slices

    @property
    def gain(self) -> str:
        """What the ensemble gains on the test images, and what these show at all; empty where there are none."""
        if self.result is None:
            return ""
        best, own = self.rows[0], self.rows[-1]
        if (own.members, own.crops) == (best.members, best.crops):
            return "It is its best member alone, on one crop."
        notes = verdict_notes(self.rows, self.result.predictions)
        return " ".join([f"Over its best member with one crop: {sentence(own, best)}", *notes])

    @property
    def parts(self) -> list[str]:
        """The members of a soup, or each member with its part in the average."""
        described = self.members.described
        if self.choose in SOUPS:
            return [described[number] for number in self._averaged_members]
        shares = zip(self.selection.shares, described, strict=True)
        return [f"{100 * share:.0f} %: {member}" for share, member in shares]

    @property
    def _averaged_members(self) -> list[int]:
        """The numbers of those that are averaged."""
        if self.choose not in SOUPS:
            return self.selection.chosen
        taken = self.predictor.members[0].card["soup"]
        return [number for number, reference in enumerate(self.members.references) if reference in taken]

    @property
    def averaged(self) -> str:
        """What of the members is averaged."""
        return "weights" if self.choose in SOUPS else self.predictor.average

    def description(self, run_id: str) -> str:
        """Return what the page of the run shows first."""
        facts = {
            "Members": "".join(f"\n    - {member}" for member in self.parts),
            "Average": f"of {self.averaged}, {crops_in_words(self.predictor.crops)}",
            **({"Gain": self.gain} if self.rows else {}),
            **self._facts("`"),
            "Again": f"`{self.files.command(program(), 'ensemble')}`",
        }
        return run_note(run_id, self.scores, facts)

    def _facts(self, quote: str) -> dict[str, str]:
        """Return the facts on the images, with quotes around digests."""
        version, result = self.version, self.result
        if result is None:
            return {"Data": f"{version.name}, version {quote}{version.digest}{quote}"}
        tested = f"{len(result.predictions.paths):,}, digest {quote}{version.test_digest}{quote}"
        return {"Data": f"{version.name}, version {quote}{version.digest}{quote}", "Test images": tested}


def write_ensemble_report(outcome: EnsembleOutcome, run_id: str) -> Path:
    """Write ``report.html`` of an ensemble into its output directory."""
    card, result, earlier = outcome.predictor.card, outcome.result, outcome.beyond.earlier
    comparison = None if earlier is None else earlier.comparison
    decision = card["decision"]["sentence"]
    directories = outcome.members.only(outcome._averaged_members).directories
    summaries = find_summaries(outcome.version, backbone=shared_backbone(directories))
    combined = MembersAndCrops(outcome.rows, outcome.members.described, [outcome.gain])
    known = Known(
        is_tested=result is not None,
        has_slices=bool(outcome.slices),
        is_compared=comparison is not None,
        chooses=bool(decision),
        summaries=summaries,
    )
    report = Report(
        title=f"{outcome.name[0].upper()}{outcome.name[1:]} on {outcome.version.name}",
        kind="ensemble",
        facts={
            **outcome._facts(""),
            "Average": f"of {outcome.averaged}",
            "Members": "; ".join(outcome.parts),
            "Chosen": f"on validation images, where the log loss is {outcome.selection.loss:.3f}",
            "Run": run_id,
            "Again": outcome.files.command(program(), "ensemble"),
        },
        result=result,
        calibrated=Calibrated.of_card(card),
        decision=[decision or MOST_PROBABLE_ANSWER],
        slices=outcome.slices,
        comparison=comparison,
        members_and_crops=combined if outcome.rows else None,
        summaries=summaries,
        notes=[NOT_TESTED] if result is None else [],
        missing=missing_of_ensemble(outcome.files, run_id, known),
    )
    return write_report(outcome.files.path, report)


def summarize_ensemble(
    outcome: EnsembleOutcome, run_id: str, run_url: str | None, model_uri: str | None
) -> EnsembleResult:
    """Return what goes into ``result.json`` and into the table at the end."""
    return EnsembleResult(
        selection=outcome.selection,
        rows=outcome.rows,
        run_id=run_id,
        model_uri=model_uri,
        directory=outcome.files.path,
        version=outcome.version,
        scores=ScoresTable(outcome.scores),
        facts={
            "dataset_digest": outcome.version.digest,
            "run_id": run_id,
            "run_name": outcome.name,
            "model_uri": model_uri,
            "shares": outcome.selection.shares,
            **outcome.beyond.to_json(),
        },
        metrics=metrics_json(outcome.scores),
        table=[
            ("test accuracy", accuracy_in_words(outcome.scores)),
            ("ensemble", os.path.relpath(outcome.files.bundle)),
            ("run", run_url or run_id),
            ("model", model_uri or "not in the registry"),
            ("report", os.path.relpath(outcome.files.path / "report.html")),
        ],
    )
