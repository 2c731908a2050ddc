"""What a training leaves for people: tables, the report, and the typed result."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from graftline.bundle.ensemble import AnyPredictor, load_predictor
from graftline.console import print_table, reworded, say
from graftline.data.version import DatasetVersion
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.metrics import Interval, format_interval, format_score, metrics_json
from graftline.evaluation.slices import Slice
from graftline.freezing.measurement import DepthMeasurement
from graftline.freezing.rule import FreezeDecision
from graftline.pipeline.evaluating.beyond_scores import BeyondScores
from graftline.pipeline.evaluating.scoring import FIGURES_FOLDER
from graftline.pipeline.program import program
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.runs.missing import Known, missing_of_training
from graftline.pipeline.runs.stage_summaries import find_summaries
from graftline.pipeline.stage import StageResult
from graftline.pipeline.training.calibration import Adjustment
from graftline.report.content import Calibrated, PictureFile, Report, Training
from graftline.report.notebook import Figures, ScoresTable, facts_html
from graftline.report.run_note import run_note
from graftline.report.run_report import write_report
from graftline.training.policy_choice import PolicyChoice
from graftline.training.results import TrainingResult

MOST_PROBABLE_ANSWER = "The most probable class is answered, and no image is refused."
DEPTH_CAPTION = "What training more of the network than its head brings on validation images, against what it costs."
AUGMENTATION_CAPTION = (
    "One training image, and as the network sees it, augmented at random. All of them are to deserve the same label."
)
NOT_TESTED = "The test split has no images: the model has no test scores, and how good it is was not measured."


@dataclass(frozen=True)
class TrainOutcome:
    """All that came of a training; no ``result`` where there were no test images, no ``choice`` where none was made.

    ``name`` is that of its run, ``beyond`` what the test tells beyond the scores, ``batchnorm`` what became of the
    statistics of BatchNorm, in words.
    """

    files: RunDirectory
    backbone: str
    version: DatasetVersion
    decision: FreezeDecision
    trained: TrainingResult
    adjusted: Adjustment
    result: EvaluationResult | None
    choice: PolicyChoice | None = None
    name: str = ""
    beyond: BeyondScores = BeyondScores()  # noqa: RUF009 - immutable
    batchnorm: str = ""

    def description(self, run_id: str) -> str:
        """Return what the page of the run shows first."""
        facts = {
            "Freeze": self.freeze,
            "Images": f"{self.version.name}, version `{self.version.digest}`: {self.images}",
            **({} if self.result is None else {"Test images": f"digest `{self.version.test_digest}`"}),
            "Again": f"`{self.files.command(program(), 'train')}`",
        }
        return run_note(run_id, self.scores, facts)

    @property
    def freeze(self) -> str:
        """What is frozen and why, and what became of BatchNorm's statistics."""
        return f"{self.decision.reason}; {self.batchnorm}" if self.batchnorm else self.decision.reason

    @property
    def images(self) -> str:
        """How many images there were, and which part of them was left out."""
        counts = ", ".join(f"{sum(classes.values()):,} {split}" for split, classes in self.version.counts().items())
        fold = self.adjusted.predictor.card.get("fold")
        return counts if fold is None else f"{counts}; without part {fold} of the training images"

    @property
    def slices(self) -> Sequence[Slice]:
        """Scores on parts of the test images; none where there is nothing to divide them by."""
        return () if self.beyond.slices is None else self.beyond.slices.slices

    @property
    def scores(self) -> Mapping[str, Interval]:
        """The scores of the test split; empty where it has no images."""
        return {} if self.result is None else self.result.scores


@dataclass(frozen=True, kw_only=True)
class TrainResult(StageResult):
    """What the stage ``train`` did; a notebook shows it as a table.

    Attributes:
        run_id: of the MLflow run.
        model_uri: of the registered model; None if it is not in the registry.
        directory: the run's output directory.
        version: the dataset version that it was trained and tested on.
        scores: of the test split, by name; a notebook shows them as a table.
    """

    run_id: str
    model_uri: str | None
    directory: Path
    version: DatasetVersion
    scores: ScoresTable

    @property
    def bundle(self) -> Path:
        """Folder of the trained model."""
        return RunDirectory(self.directory).bundle

    @property
    def report(self) -> Path:
        """The report, an HTML file."""
        return self.directory / "report.html"

    @property
    def figures(self) -> Figures:
        """The figures of the test split, by name; a notebook shows them."""
        return Figures.in_folder(RunDirectory(self.directory).test / FIGURES_FOLDER)

    @cached_property
    def predictor(self) -> AnyPredictor:
        """Classifies images with the trained model."""
        return load_predictor(self.bundle)

    def __repr__(self) -> str:
        """Return the short table that the stage ends with."""
        return "\n".join(f"{name:<14} {text}" for name, text in self.table)

    def _repr_html_(self) -> str:
        return facts_html(self.table) + self.scores._repr_html_()


def print_measurement(measurement: DepthMeasurement) -> None:
    """Print the boundaries that were tried in a table, and why no deeper one was."""
    chosen = measurement.chosen
    print_table(
        f"Log loss on {measurement.judged_by}; 95 % interval beyond the chosen",
        ("trained from", "parameters", "images", "accuracy", "log loss", "difference", "seconds"),
        (
            (
                row.boundary.partition(" + ")[0],
                f"{row.trained_parameters:,}",
                f"{row.images:,}",
                f"{row.accuracy:.3f}",
                f"{row.log_loss:.3f}",
                "chosen" if row is chosen else f"{row.more_log_loss.low:+z.3f} to {row.more_log_loss.high:+z.3f}",
                f"{row.pass_seconds + row.fit_seconds:.1f}",
            )
            for row in measurement.rows
        ),
    )
    say(f"{measurement.stopped[0].upper()}{measurement.stopped[1:]}.")


def print_policy_choice(choice: PolicyChoice) -> None:
    """Print what each transform that was tried does to the predictions, in a table."""
    rows = [
        (
            row.name,
            f"{row.images:,}",
            f"{100 * row.lost.value:z.0f} % ({100 * row.lost.low:z.0f} to {100 * row.lost.high:z.0f} %)",
            f"{row.log_loss.value:+z.3f}",
            f"{row.accuracy.value:+z.3f}",
            "used" if row.kept else "left out",
        )
        for row in choice.rows
        if row.lost is not None and row.log_loss is not None and row.accuracy is not None
    ]
    if rows:
        columns = ("transform", "images", "knowledge lost", "log loss", "accuracy", "")
        print_table(f"What a transform changes for the head ({choice.seconds:.0f} s); 95 % intervals", columns, rows)


def write_run_report(outcome: TrainOutcome, run_id: str) -> Path:
    """Write ``report.html`` of a training into its output directory."""
    version, history, result, adjusted = outcome.version, outcome.trained.history, outcome.result, outcome.adjusted
    comparison = None if outcome.beyond.earlier is None else outcome.beyond.earlier.comparison
    speed = {} if result is None else {"Speed": f"{result.images_per_second:,.0f} test images per second, one crop"}
    facts = {
        "Data": f"{version.name}, version {version.digest}",
        "Images": outcome.images,
        "Backbone": outcome.backbone,
        "Freeze": outcome.freeze,
        "Training": f"epoch {history.best['epoch'] + 1:.0f} of {len(history.epochs)} is kept; {history.seconds:.0f} s",
        **({} if outcome.choice is None else {"Augmentation": outcome.choice.sentence()}),
        **speed,
        "Run": run_id,
        "Again": outcome.files.command(program(), "train"),
    }
    fit, chooses = adjusted.calibration, bool(adjusted.decision.sentence) or adjusted.refusal is not None
    summaries = find_summaries(version, backbone=outcome.backbone)
    known = Known(
        is_tested=result is not None,
        has_slices=bool(outcome.slices),
        is_compared=comparison is not None,
        chooses=chooses,
        summaries=summaries,
    )
    report = Report(
        title=f"{outcome.backbone} on {version.name}",
        kind="training",
        facts=facts,
        result=result,
        calibrated=Calibrated(fit.sentence, fit.error_before, fit.error_after),
        decision=adjusted.sentences[1:] or [MOST_PROBABLE_ANSWER],
        slices=outcome.slices,
        comparison=comparison,
        training=_training(outcome),
        summaries=summaries,
        notes=[NOT_TESTED] if result is None else [],
        missing=missing_of_training(outcome.files, run_id, known),
    )
    return write_report(outcome.files.path, report)


def _training(outcome: TrainOutcome) -> Training:
    """Return what the report shows of the fit."""
    history, kept, files = outcome.trained.history, outcome.trained.kept, outcome.files
    pictures = []
    if outcome.decision.measurement is not None and files.measurement.exists():
        pictures.append(PictureFile(files.measurement, "How deep to train", DEPTH_CAPTION))
    if kept.augmented:
        pictures.append(
            PictureFile(files.augmentation, "What the network sees of a training image", AUGMENTATION_CAPTION)
        )
    sentences = [f"Freeze: {outcome.freeze}.", reworded(kept.source)]
    if outcome.choice is not None:
        sentences.append(f"Augmentation: {outcome.choice.sentence()}.")
    return Training(history.epochs, history.best, sentences, pictures)


def accuracy_in_words(scores: Mapping[str, Interval]) -> str:
    """Return the accuracy on the test images with its interval, for the table at the end of a stage."""
    if (accuracy := scores.get("accuracy")) is None:
        return "none, there are no test images"
    return f"{format_score('accuracy', accuracy.value)} ({format_interval('accuracy', accuracy)})"


def summarize(outcome: TrainOutcome, run_id: str, run_url: str | None, model_uri: str | None) -> TrainResult:
    """Return what goes into ``result.json`` and into the table at the end."""
    history = outcome.trained.history
    return TrainResult(
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
            "freeze": outcome.decision.reason,
            "epochs": len(history.epochs),
            "fit_seconds": round(history.seconds, 1),
            **outcome.beyond.to_json(),
        },
        metrics=metrics_json(outcome.scores),
        table=[
            ("test accuracy", accuracy_in_words(outcome.scores)),
            ("run", run_url or run_id),
            ("model", model_uri or "not in the registry"),
            ("report", os.path.relpath(outcome.files.path / "report.html")),
        ],
    )
