"""Predict: a bundle on a folder of images, as a table."""

import os
from dataclasses import dataclass
from pathlib import Path

from graftline.bundle.predict import find_images, predict_directory
from graftline.bundle.predictor import Predictor
from graftline.console import progress
from graftline.files import atomic_file
from pipeline.stage import StageResult


@dataclass(frozen=True)
class Predict:
    """The stage ``predict`` (Hydra target of conf/predict.yaml)."""

    bundle: str
    images: str

    def run(self, directory: Path) -> StageResult:
        """Classify every image below a folder and write ``predictions.csv``."""
        predictor, images = Predictor.from_directory(Path(self.bundle)), Path(self.images)
        with progress("Classifying", total=len(find_images(images))) as bar:
            predictions = predict_directory(predictor, images, lambda done: bar.advance(bar.task_ids[0], done))
        file = directory / "predictions.csv"
        with atomic_file(file) as temporary:
            predictions.to_csv(temporary, index=False)
        readable = predictions[predictions["error"].isna()]
        counts = readable["class"].value_counts()
        return StageResult(
            facts={"bundle": self.bundle, "images": len(predictions), "unreadable": len(predictions) - len(readable)},
            table=[
                *((str(name), f"{count:,}") for name, count in counts.items()),
                ("unreadable", f"{len(predictions) - len(readable):,}"),
                ("table", os.path.relpath(file)),
            ],
        )
