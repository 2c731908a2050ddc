"""A report with everything in it, of made-up numbers and a few small images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from graftline.evaluation.comparison import Comparison, PairedComparison, ScoredModel
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.grid import GridRow
from graftline.evaluation.metrics import Interval
from graftline.evaluation.notes import notes_on
from graftline.evaluation.predictions import Predictions
from graftline.evaluation.slices import Slice
from graftline.evaluation.verdict import PairedTest
from graftline.report.content import (
    Calibrated,
    MembersAndCrops,
    Missing,
    PictureFile,
    Report,
    StageSummary,
    SuspectLabel,
    Training,
)

EVIL = '<script>alert("1")</script>'
MIDDLE = Interval(0.8, 0.7, 0.9)


def scores_of(predictions: Predictions) -> dict[str, Interval]:
    """Return scores with intervals as they might be: what is shown does not depend on how they were found."""
    right = predictions.predicted == predictions.labels
    accuracy = float(right.mean())
    names = ("accuracy", "balanced_accuracy", "f1_macro", "auroc", "log_loss", "brier", "ece")
    scores = {name: Interval(accuracy, 0.9 * accuracy, min(1.0, 1.1 * accuracy)) for name in names}
    scores["log_loss"] = Interval(1.8, 1.7, 2.0)
    for number, name in enumerate(predictions.class_names):
        if (of_class := predictions.labels == number).any():
            found = float(right[of_class].mean())
            scores[f"recall/{name}"] = Interval(found, 0.9 * found, found)
    return scores


def made_result(predictions: Predictions) -> EvaluationResult:
    scores = scores_of(predictions)
    return EvaluationResult(predictions, scores, notes_on(predictions, scores), 100.0)


def made_report(predictions: Predictions, folder: Path) -> Report:
    """Return a report that has every section."""
    Image.new("RGB", (640, 480), "orange").save(folder / "sheet.png")
    picture = PictureFile(folder / "sheet.png", "The augmentation", f"A picture of {EVIL}.")
    return Report(
        title=f"Squares {EVIL}",
        kind="training",
        facts={"data set": EVIL, EVIL: "fact", "freeze": "all but the head, since " + 60 * "x"},
        result=made_result(predictions),
        calibrated=Calibrated("By a temperature.", Interval(0.08, 0.02, 0.12), Interval(0.03, 0.0, 0.09)),
        decision=["The most probable class is answered."],
        slices=[Slice("stratum", EVIL, 30, MIDDLE, 0.95, 0.01), Slice("brightness", "low", 30, MIDDLE, 0.7, 1.0)],
        members_and_crops=MembersAndCrops(_rows(), ["one", "two"], ["It gains."], [picture]),
        comparison=_comparison(),
        training=Training(*_epochs(), ["All but the head is frozen."], [picture]),
        summaries=_summaries(predictions, picture),
        notes=[f"A note on {EVIL}."],
        missing=[Missing("What more labels would bring", "make learning-curve")],
    )


def _summaries(predictions: Predictions, picture: PictureFile) -> list[StageSummary]:
    labels = [SuspectLabel(path, EVIL, "another", 0.02) for path in predictions.paths[:3]]
    return [
        StageSummary("explain", "Explanations", "Where it was seen", ["A mistake."], "outputs/1", pictures=[picture]),
        StageSummary("audit", "Labels", "Whether the labels are right", [EVIL], "outputs/2", labels=labels),
        StageSummary("learning-curve", "More labels", "More of them", ["Twice: +1."], "outputs/3", pictures=[picture]),
    ]


def _epochs() -> tuple[Sequence[dict[str, float]], dict[str, float]]:
    epochs = [
        {
            "epoch": float(one),
            "train/loss": 1 / (one + 1),
            "val/loss": 0.5 + 0.01 * (one - 4) ** 2,
            "val/calibrated_loss": 0.48 + 0.01 * (one - 4) ** 2,
            "val/accuracy": 0.8,
        }
        for one in range(9)
    ]
    return epochs, epochs[4]


def _rows() -> list[GridRow]:
    gain = Interval(0.02, -0.01, 0.05)
    first = GridRow((0,), "1", MIDDLE, MIDDLE, gain, gain, 6.0, is_on_frontier=True)
    other = replace(first, test=PairedTest(12, 9, 0.5, 0.5, 0.05, "no difference shown"))
    return [first, replace(other, crops="10", milliseconds=60.0, is_on_frontier=False), replace(other, members=(0, 1))]


def _comparison() -> Comparison:
    gain = {"accuracy": Interval(0.02, -0.01, 0.05)}
    row = PairedComparison("a challenger", {"accuracy": MIDDLE}, 12, 9, 0.5, 0.5, 0.05, "no difference shown", gain)
    reference = ScoredModel("the champion", {"accuracy": MIDDLE})
    return Comparison("accuracy", 60, "squares", "test", "0" * 16, reference, (row,))
