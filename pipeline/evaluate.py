"""Evaluate: a bundle on the test split of a dataset version."""

import os
from dataclasses import dataclass
from pathlib import Path

from graftline.bundle.predictor import Predictor
from graftline.console import warn
from graftline.data.ingest import Ingest
from graftline.evaluation.evaluation import Evaluation
from graftline.evaluation.metrics import print_scores
from graftline.report.html import write_report
from pipeline.stage import StageResult


@dataclass(frozen=True)
class Evaluate:
    """The stage ``evaluate`` (Hydra target of conf/evaluate.yaml)."""

    data: Ingest
    evaluation: Evaluation
    bundle: str

    def run(self, directory: Path) -> StageResult:
        """Classify the test split and score it."""
        predictor = Predictor.from_directory(Path(self.bundle), engine=self.evaluation.engine)
        version = self.data.run().version
        if predictor.card.get("dataset_digest") != version.digest:
            warn("The bundle was trained on another dataset version: some of these test images may have trained it.")
        result = self.evaluation.run(predictor, version, directory)
        print_scores(result.scores, f"{version.name}: test split")
        report = write_report(
            directory,
            title=f"{Path(self.bundle).name} on {version.name}",
            facts={"Bundle": self.bundle, "Data": f"{version.name}, version {version.digest}"},
            scores=result.scores,
            figures=result.figures,
            notes=result.notes,
        )
        return StageResult(
            facts={"dataset_digest": version.digest, "bundle": self.bundle},
            metrics=result.metrics_json(),
            table=[
                ("report", os.path.relpath(report)),
                ("predictions", os.path.relpath(result.predictions)),
                ("images", f"{result.images_per_second:,.0f} per second"),
            ],
        )
