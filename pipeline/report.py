"""What a training leaves for people: the report, and the short table at the end."""

from pathlib import Path
from typing import TYPE_CHECKING

from graftline.data.version import DatasetVersion
from graftline.evaluation.evaluation import Result
from graftline.evaluation.metrics import format_interval, format_score
from graftline.evaluation.report import write_report
from graftline.freezing.plan import FreezePlan
from graftline.training.fit import Fit
from pipeline.stage import StageResult

if TYPE_CHECKING:  # as in train.py
    from graftline.tracking.run import Run


def write_run_report(
    directory: Path, backbone: str, version: DatasetVersion, plan: FreezePlan, fitted: Fit, result: Result
) -> Path:
    """Write ``report.html`` of a training into its output directory."""
    images = {split: sum(classes.values()) for split, classes in version.counts().items()}
    facts = {
        "Data": f"{version.name}, version {version.digest}",
        "Images": ", ".join(f"{count:,} {split}" for split, count in images.items()),
        "Backbone": backbone,
        "Freeze": plan.reason,
        "Training": f"best of {len(fitted.history)} epochs: {fitted.best['epoch'] + 1:.0f}; {fitted.seconds:.0f} s",
        "Speed": f"{result.images_per_second:,.0f} test images per second, one crop",
    }
    figures = {"augmentation": directory / "augment.png", **result.figures}
    return write_report(
        directory,
        title=f"{backbone} on {version.name}",
        facts=facts,
        scores=result.scores,
        figures=figures,
        notes=result.notes,
    )


def summarise(
    version: DatasetVersion, plan: FreezePlan, fitted: Fit, result: Result, run: "Run", model_uri: str | None
) -> StageResult:
    """Return what goes into ``result.json`` and into the table at the end."""
    accuracy = result.scores["accuracy"]
    return StageResult(
        facts={
            "dataset_digest": version.digest,
            "run_id": run.id,
            "model_uri": model_uri,
            "freeze": plan.reason,
            "epochs": len(fitted.history),
            "fit_seconds": round(fitted.seconds, 1),
        },
        metrics=result.metrics_json(),
        table=[
            ("test accuracy", f"{format_score('accuracy', accuracy.value)} ({format_interval('accuracy', accuracy)})"),
            ("run", run.url or run.id),
            ("model", model_uri or "not in the registry yet"),
            ("report", str(run.directory / "report.html")),
        ],
    )
