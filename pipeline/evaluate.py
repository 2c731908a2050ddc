"""Evaluate: a bundle on the test split of the data set that it was trained on, or on all images of another."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omegaconf import OmegaConf

from graftline.bundle.predictor import Predictor
from graftline.console import say, warn
from graftline.data.ingest import Ingest
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.evaluation import Evaluation, EvaluationResult
from graftline.execution import Accelerator, Execution
from graftline.pipeline.bundle_source import open_bundle
from graftline.pipeline.parent import with_parent
from graftline.pipeline.scoring import PREDICTIONS_FILE, log_evaluation, write_evaluation
from graftline.pipeline.stage import StageResult
from graftline.report.html import write_report
from graftline.report.run_note import run_note
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
    split: Literal["all", "train", "validation", "test"] | None = None

    def run(self, directory: Path) -> EvaluateResult:
        """Classify the images, score that and track it."""
        self.tracking.check()
        execution = Execution.local(self.accelerator)
        predictor, bundle = open_bundle(self.bundle, self.tracking, self.evaluation.engine, execution)
        version, split = self._images(predictor)
        with self._start_run(version, directory) as run:
            say(f"Run {run.id}.")
            self._log_setup(run, version, directory)
            result = self.evaluation.run(replace(predictor, decoding=version.decoding), version, split)
            print_scores(result.scores, f"{version.name}: {split} split")
            report = self._write_report(result, predictor, bundle, version, directory)
            log_evaluation(run, result, directory, step=0)
            run.log_artifact(report)
            run.describe(self._note(run.id, result))
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

    def _images(self, predictor: Predictor) -> tuple[DatasetVersion, str]:
        """Return the images to classify: a dataset version, and which split of it."""
        card, data = predictor.card, with_parent(self.data, self.tracking)
        trained = [str(card[key]) for key in ("dataset_digest", "test_digest") if key in card]
        ingested, split = data.run_as_test(predictor.class_names, trained, self.split, predictor.decoding)
        version = ingested.version
        if version.decoding.identity() != predictor.decoding.identity():
            warn("The images are decoded as data.decode says, not as the bundle was trained: leave it out for that.")
        counts = {name: number for name, number in version.counts()[split].items() if number > 0}
        if not counts:
            raise UserError(
                f"There are no {split} images in {version.name}, as the bundle was trained: evaluate it on other "
                "images, or take split=validation or split=all."
            )
        if (absent := len(predictor.class_names) - len(counts)) > 0:
            say(f"The model knows {len(predictor.class_names)} classes; there are no images of {absent} of them.")
        digests = {version.digest}
        if any(version.counts()["test"].values()):  # all splits without images have one digest
            digests.add(version.test_digest)
        if not digests & set(trained):
            self._warn_of_seen_images(version, split, str(card.get("dataset_digest")))
        elif split != "test":
            warn(f"The bundle was trained with these images of the {split} split: others it will classify worse.")
        return version, split

    def _warn_of_seen_images(self, version: DatasetVersion, split: str, trained: str) -> None:
        """Say how many of the images the bundle was trained with, where the version that it was trained on is here."""
        directory = Path(self.data.directory) / self.data.dataset_name() / trained
        if not directory.is_dir():
            warn("The bundle was trained on another dataset version: make sure that none of these images trained it.")
            return
        before = DatasetVersion.load(directory)
        seen = {sha256 for name in ("train", "validation") for sha256 in before.samples(name).sha256}
        if number := len(seen & set(version.samples(split).sha256)):
            warn(f"{number:,} of these images trained the bundle, or chose its epoch: it will classify others worse.")

    def _start_run(self, version: DatasetVersion, directory: Path) -> "Run":
        return self.tracking.start(
            run_name=self.name or f"{self.bundle} on {version.name}",
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

    def _note(self, run_id: str, result: EvaluationResult) -> str:
        """Return what the page of the run shows first."""
        tested = result.predictions
        images = f"{len(tested.paths):,} of {tested.dataset} ({tested.split} split), digest `{tested.split_digest}`"
        return run_note(run_id, result.scores, {"Bundle": f"`{self.bundle}`", "Images": images})

    def _write_report(
        self, result: EvaluationResult, predictor: Predictor, bundle: Path, version: DatasetVersion, directory: Path
    ) -> Path:
        tested = result.predictions
        return write_report(
            directory,
            title=f"{bundle.name} on {version.name}",
            facts={
                "Bundle": f"{self.bundle}, digest {predictor.digest}",
                "Data": f"{version.name}, version {version.digest}",
                "Images": f"{len(tested.paths):,} ({tested.split} split), digest {tested.split_digest}",
            },
            scores=result.scores,
            figures=write_evaluation(result, directory),
            notes=result.notes,
        )
