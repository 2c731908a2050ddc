"""What a training leaves for people: the report, and the short table at the end."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graftline.data.version import DatasetVersion
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.metrics import format_interval, format_score
from graftline.freezing.plan import FreezePlan
from graftline.report.html import write_report
from graftline.training.phases import TrainingResult
from pipeline.stage import StageResult


@dataclass(frozen=True)
class Outcome:
    """All that came of a training."""

    directory: Path
    backbone: str
    version: DatasetVersion
    plans: list[FreezePlan]
    trained: TrainingResult
    result: EvaluationResult

    @property
    def decision(self) -> str:
        """What was frozen, phase by phase, and why."""
        return "; then ".join(plan.decision for plan in self.plans)


def write_run_report(outcome: Outcome, figures: Mapping[str, Path]) -> Path:
    """Write ``report.html`` of a training into its output directory, with the figures of its evaluation."""
    version, fitted, result = outcome.version, outcome.trained.fit, outcome.result
    images = {split: sum(classes.values()) for split, classes in version.counts().items()}
    facts = {
        "Data": f"{version.name}, version {version.digest}",
        "Images": ", ".join(f"{count:,} {split}" for split, count in images.items()),
        "Backbone": outcome.backbone,
        "Freeze": outcome.decision,
        "Training": f"epoch {fitted.best['epoch'] + 1:.0f} of {len(fitted.history)} is kept; {fitted.seconds:.0f} s",
        "Speed": f"{result.images_per_second:,.0f} test images per second, one crop",
    }
    sheet = {"augmentation": outcome.directory / "augment.png"} if outcome.trained.inputs.augmented else {}
    return write_report(
        outcome.directory,
        title=f"{outcome.backbone} on {version.name}",
        facts=facts,
        scores=result.scores,
        figures={**figures, **sheet},
        notes=[*result.notes, outcome.trained.inputs.sentence],
    )


def summarize(outcome: Outcome, run_id: str, run_url: str | None, model_uri: str | None) -> StageResult:
    """Return what goes into ``result.json`` and into the table at the end."""
    accuracy = outcome.result.scores["accuracy"]
    return StageResult(
        facts={
            "dataset_digest": outcome.version.digest,
            "run_id": run_id,
            "model_uri": model_uri,
            "freeze": outcome.decision,
            "epochs": len(outcome.trained.fit.history),
            "fit_seconds": round(outcome.trained.fit.seconds, 1),
        },
        metrics=outcome.result.metrics_json(),
        table=[
            ("test accuracy", f"{format_score('accuracy', accuracy.value)} ({format_interval('accuracy', accuracy)})"),
            ("run", run_url or run_id),
            ("model", model_uri or "not in the registry"),
            ("report", os.path.relpath(outcome.directory / "report.html")),
        ],
    )
