"""Evaluate: a bundle on the test split of a dataset version."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from graftline.bundle.predictor import Predictor
from graftline.console import say, warn
from graftline.data.ingest import Ingest
from graftline.data.version import DatasetVersion
from graftline.evaluation.evaluation import Evaluation, EvaluationResult
from graftline.execution import Accelerator, Execution
from graftline.pipeline.bundle_source import open_bundle
from graftline.pipeline.parent import with_parent
from graftline.pipeline.scoring import PREDICTIONS_FILE, log_evaluation, write_evaluation
from graftline.pipeline.stage import StageResult
from graftline.report.html import write_report
from graftline.report.tables import print_scores
from graftline.tracking.tracking import Tracking

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(StageResult):
    """What the stage ``evaluate`` found, and the run that has it."""

    evaluation: EvaluationResult
    run_id: str


@dataclass(frozen=True)
class Evaluate:
    """The stage ``evaluate`` (Hydra target of conf/evaluate.yaml)."""

    data: Ingest
    evaluation: Evaluation
    tracking: Tracking
    bundle: str
    name: str | None = None
    accelerator: Accelerator = "auto"

    def run(self, directory: Path) -> EvaluateResult:
        """Classify the test split, score it and track that."""
        self.tracking.check()
        execution = Execution.local(self.accelerator)
        predictor, bundle = open_bundle(self.bundle, self.tracking, self.evaluation.engine, execution)
        version = with_parent(self.data, self.tracking).run().version
        if not _was_tested_on(predictor, version):
            warn("The bundle was trained on another dataset version: some of these test images may have trained it.")
        with self._start_run(version, directory) as run:
            say(f"Run {run.id}.")
            self._log_setup(run, version, directory)
            result = self.evaluation.run(predictor.accepting(version.decoding.max_pixels), version)
            print_scores(result.scores, f"{version.name}: test split")
            report = self._write_report(result, predictor, bundle, version, directory)
            log_evaluation(run, result, directory, step=0)
            run.log_artifact(report)
        return EvaluateResult(
            facts={"dataset_digest": version.digest, "run_id": run.id, "bundle": self.bundle},
            metrics=result.metrics_json(),
            table=[
                ("run", run.url or run.id),
                ("report", os.path.relpath(report)),
                ("predictions", os.path.relpath(directory / PREDICTIONS_FILE)),
                ("images", f"{result.images_per_second:,.0f} per second"),
            ],
            evaluation=result,
            run_id=run.id,
        )

    def _start_run(self, version: DatasetVersion, directory: Path) -> "Run":
        return self.tracking.start(
            run_name=self.name or f"evaluate {directory.name}",
            experiment=version.name,
            directory=directory,
            tags={"graftline.stage": "evaluate"},
        )

    def _log_setup(self, run: "Run", version: DatasetVersion, directory: Path) -> None:
        """Log what the run is made of: configuration, code and images."""
        config = OmegaConf.load(directory / ".hydra" / "config.yaml")
        nested = OmegaConf.to_container(config, resolve=True)
        assert isinstance(nested, dict)
        run.log_params({str(key): value for key, value in nested.items()}, OmegaConf.to_yaml(config))
        run.log_environment()
        run.log_dataset(version)

    def _write_report(
        self, result: EvaluationResult, predictor: Predictor, bundle: Path, version: DatasetVersion, directory: Path
    ) -> Path:
        return write_report(
            directory,
            title=f"{bundle.name} on {version.name}",
            facts={
                "Bundle": f"{self.bundle}, digest {predictor.digest}",
                "Data": f"{version.name}, version {version.digest}",
                "Test images": f"{len(result.predictions.paths):,}, digest {result.predictions.split_digest}",
            },
            scores=result.scores,
            figures=write_evaluation(result, directory),
            notes=result.notes,
        )


def _was_tested_on(predictor: Predictor, version: DatasetVersion) -> bool:
    """Tell whether the bundle's training kept the version's test images apart."""
    card = predictor.card
    return version.test_digest == card.get("test_digest") or version.digest == card.get("dataset_digest")
