"""What calibration, sets of classes and refusal do on other splits of a data set: the numbers of docs/probabilities.md.

    python -m benchmarks.calibration outputs/train/…/bundle data/elpv/DIGEST

embeds all images of a dataset version with a bundle, once, and fits heads (logistic regression, from far too simple to
far too sure) on random splits, 60 % training, 15 % validation, 25 % test. Everything is chosen on validation images and
looked at on test images.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from graftline.bundle.predictor import Predictor
from graftline.console import print_table
from graftline.data.version import DatasetVersion
from graftline.evaluation.bootstrap import normalized
from graftline.evaluation.calibration import calibration_error, fit_calibration
from graftline.evaluation.conformal import with_sets
from graftline.evaluation.decision import NOT_CHOSEN
from graftline.evaluation.predictions import Predictions
from graftline.evaluation.refusal import fit_refusal

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-1)  # of the head, the inverse of its regularization
SPLITS = 12
COVERAGE, REFUSED = 0.9, 0.05


class Row(NamedTuple):
    """What came of one head on one split."""

    temperature: float
    vector: bool
    kept: bool
    log_loss_before: float
    log_loss_after: float
    error_before: float
    error_after: float
    coverage: float


def main(bundle: str, directory: str) -> None:
    """Print the tables."""
    version, predictor = DatasetVersion.load(Path(directory)), Predictor.from_directory(bundle)
    parts = [version.samples(split) for split in ("train", "validation", "test")]
    paths, labels = [path for part in parts for path in part.paths], np.concatenate([part.labels for part in parts])
    embeddings = predictor.logits_and_embeddings(paths)[1]
    rows: dict[float, list[Row]] = {strength: [] for strength in STRENGTHS}
    refused = []
    for train, validation, test in splits(len(labels)):
        known, others = ((embeddings[some], labels[some]) for some in (train, validation))
        refused.append(
            fit_refusal(known, others, version.class_names, REFUSED).refusal.refused(embeddings[test]).mean()
        )
        spread = np.maximum(embeddings[train].std(axis=0), 1e-6)
        scaled = (embeddings - embeddings[train].mean(axis=0)) / spread
        for strength in STRENGTHS:
            head = LogisticRegression(C=strength, max_iter=150).fit(scaled[train], labels[train])
            logits = np.atleast_2d(head.decision_function(scaled).T).T
            if logits.shape[1] == 1:
                logits = np.hstack([-logits / 2, logits / 2])
            made = [predictions_of(logits[some], labels[some], version.class_names) for some in (validation, test)]
            rows[strength].append(judge(*made))
    print_table(
        f"Mean over {SPLITS} splits of {len(labels):,} images",
        ("C", "kept", "vector", "temperature", "log loss", "after", "error", "after", "covered"),
        [
            (
                f"{strength:g}",
                f"{sum(row.kept for row in some)} of {SPLITS}",
                f"{sum(row.vector for row in some)}",
                f"{np.mean([row.temperature for row in some]):.2f}",
                *(f"{np.mean([row[number] for row in some]):.3f}" for number in range(3, 7)),
                f"{100 * np.mean([row.coverage for row in some]):.1f} %",
            )
            for strength, some in rows.items()
        ],
    )
    print(
        f"Sets were to cover {100 * COVERAGE:g} %. {100 * REFUSED:g} % of the images were to be refused, and "
        f"{100 * np.mean(refused):.1f} % were."
    )


def splits(num_images: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield random splits: numbers of training, validation and test images."""
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(num_images)
        train, validation, test = np.split(order, [int(0.6 * num_images), int(0.75 * num_images)])
        yield train, validation, test


def predictions_of(logits: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Predictions:
    """Return predictions of images that have no files."""
    names = [str(number) for number in range(len(labels))]
    return Predictions(names, logits.astype(np.float32), labels, None, names, class_names, "", "", "", "")


def judge(validation: Predictions, test: Predictions) -> Row:
    """Calibrate on validation images, and look at the test images before and after."""
    fit = fit_calibration(validation)
    after = replace(test, logits=fit.calibration.apply(test.logits))
    calibrated = replace(validation, logits=fit.calibration.apply(validation.logits))
    sets = with_sets(NOT_CHOSEN, calibrated, COVERAGE).decision.sets(after.probabilities)
    losses = [log_loss(one.labels, normalized(one.probabilities)) for one in (test, after)]
    errors = [calibration_error(one.probabilities, one.labels, resamples=2).value for one in (test, after)]
    return Row(
        fit.calibration.temperature,
        bool(fit.calibration.scales),
        fit.calibration.to_dict() is not None,
        *losses,
        *errors,
        float(sets[np.arange(len(sets)), test.labels].mean()),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
