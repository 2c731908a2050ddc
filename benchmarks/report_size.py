"""Measure the report of very many classes and images, which is to stay a file that one can send.

    python benchmarks/report_size.py                 1,000 classes, 100,000 images: 4 GB of memory, a core for a minute
    python benchmarks/report_size.py --classes 100 --images 10000

The images are made up: 200 JPEGs of 224 x 224 px with as much detail as photographs, each of which stands for many.
Seven of ten answers are right, the others are spread over all classes. It fails where the file is above 2 MB.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.metrics import score
from graftline.evaluation.notes import notes_on
from graftline.evaluation.predictions import Predictions
from graftline.report.content import Report
from graftline.report.run_report import write_report

FILES, SIDE = 200, 224
MOST_MB = 2.0


def make_images(folder: Path) -> list[str]:
    """Write images with detail of all sizes, as photographs have."""
    generator, paths = np.random.default_rng(0), list[str]()
    for number in range(FILES):
        pixels = sum(
            np.asarray(
                Image.fromarray(generator.integers(0, 256, (side, side, 3), np.uint8)).resize((SIDE, SIDE)), float
            )
            for side in (4, 16, 64, SIDE)
        )
        image = Image.fromarray((pixels / 4).astype(np.uint8)).filter(ImageFilter.SMOOTH)
        image.save(folder / f"{number}.jpg", quality=90)
        paths.append(str(folder / f"{number}.jpg"))
    return paths


def make_predictions(num_classes: int, num_images: int, files: list[str]) -> Predictions:
    """Return answers of which seven in ten are right."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, num_classes, num_images)
    others = generator.integers(0, num_classes, num_images)
    answers = np.where(generator.random(num_images) < 0.7, labels, others)
    logits = generator.normal(0, 1, (num_images, num_classes)).astype(np.float32)
    logits[np.arange(num_images), answers] += generator.uniform(4, 12, num_images).astype(np.float32)
    return Predictions(
        paths=[files[number % len(files)] for number in range(num_images)],
        logits=logits,
        labels=labels,
        weights=None,
        sha256=[f"{number:064x}" for number in range(num_images)],
        class_names=tuple(f"species {number} of a long-named genus" for number in range(num_classes)),
        split="test",
        dataset="made up",
        split_digest="0" * 16,
        bundle_digest="0" * 16,
    )


def main() -> None:
    """Write a report and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--resamples", type=int, default=10, help="behind each interval: they do not change the size")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        predictions = make_predictions(asked.classes, asked.images, make_images(Path(folder)))
        scores = score(predictions, asked.resamples)
        result = EvaluationResult(predictions, scores, notes_on(predictions, scores), 100.0)
        start = time.perf_counter()
        report = write_report(Path(folder), Report(title="Many", kind="evaluation", facts={}, result=result))
        seconds, size = time.perf_counter() - start, report.stat().st_size / 1e6
    print(f"{asked.classes:,} classes, {asked.images:,} images: {size:.2f} MB, written in {seconds:.0f} s")
    assert size < MOST_MB, f"more than {MOST_MB} MB"


if __name__ == "__main__":
    main()
