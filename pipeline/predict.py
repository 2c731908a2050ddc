"""Predict: a bundle on a folder of images, as a table."""

import os
from dataclasses import dataclass
from pathlib import Path

from graftline.bundle.predict import find_images, predict_files
from graftline.bundle.predictor import EngineName
from graftline.console import progress
from graftline.execution import Accelerator, Execution
from graftline.files import atomic_file
from graftline.pipeline.bundle_source import open_bundle
from graftline.pipeline.stage import StageResult
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class PredictResult(StageResult):
    """What the stage ``predict`` wrote: a row per image."""

    predictions: Path


@dataclass(frozen=True)
class Predict:
    """The stage ``predict`` (Hydra target of conf/predict.yaml)."""

    tracking: Tracking
    bundle: str
    images: str
    engine: EngineName = "onnx"
    accelerator: Accelerator = "auto"

    def run(self, directory: Path) -> PredictResult:
        """Classify every image below a folder and write ``predictions.csv``."""
        paths = find_images(Path(self.images))
        predictor, _ = open_bundle(self.bundle, self.tracking, self.engine, Execution.local(self.accelerator))
        with progress("Classifying", total=len(paths)) as bar:
            predictions = predict_files(predictor, paths, lambda done: bar.advance(bar.task_ids[0], done))
        file = directory / "predictions.csv"
        with atomic_file(file) as temporary:
            predictions.to_csv(temporary, index=False)
        readable = predictions[predictions["error"].isna()]
        counts = readable["class"].value_counts()
        unreadable = len(predictions) - len(readable)
        return PredictResult(
            facts={
                "bundle": self.bundle,
                "bundle_digest": predictor.digest,
                "images": len(predictions),
                "unreadable": unreadable,
            },
            table=[
                *((str(name), f"{count:,}") for name, count in counts.items()),
                *([("refused", f"{readable['refused'].sum():,}")] if "refused" in readable else []),
                ("unreadable", f"{unreadable:,}"),
                ("table", os.path.relpath(file)),
            ],
            predictions=file,
        )
