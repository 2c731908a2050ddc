"""What becomes of an evaluation in a stage: files in its output directory, entries in its MLflow run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.metrics import HEADLINES, Interval
from graftline.report.figures import write_figures
from graftline.tracking.names import BUNDLE_DIGEST, PREDICTIONS, TEST, TEST_DIGEST

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

SCORES_TAG = "graftline.scores"  # of a registered version: one, as MLflow gives each a line of its table
PREDICTIONS_FILE, SLICES_FILE, FIGURES_FOLDER = PREDICTIONS, "slices.csv", "figures"


def write_evaluation(result: EvaluationResult, directory: Path) -> dict[str, Path]:
    """Write the predictions and the figures that are drawn of them; returns the figures' files by name."""
    result.predictions.save(directory / PREDICTIONS_FILE)
    return write_figures(result.predictions, result.scores, directory / FIGURES_FOLDER)


def score_tags(scores: Mapping[str, Interval]) -> dict[str, str]:
    """Return the scores of the test with their intervals, as a tag of a registered version; none without a test.

    >>> score_tags({"accuracy": Interval(0.8842, 0.8604, 0.9091), "recall/cat": Interval(1, 1, 1)})
    {'graftline.scores': 'accuracy 0.8842 [0.8604, 0.9091]'}
    """
    told = [
        f"{name} {one.value:.4f} [{one.low:.4f}, {one.high:.4f}]" for name, one in scores.items() if name in HEADLINES
    ]
    return {SCORES_TAG: ", ".join(told)} if told else {}


def log_evaluation(run: "Run", result: EvaluationResult, directory: Path, step: int) -> dict[str, float]:
    """Log the scores, what ``write_evaluation`` and slices have written, and the digests of what was tested on what.

    Returns:
        The metrics as the run has them, each behind the name of the split that was scored: ``test/accuracy``.
    """
    predictions = result.predictions
    metrics = {f"{predictions.split}/{name}": interval.value for name, interval in result.scores.items()}
    run.log_metrics(metrics, step=step)
    of_test = {TEST_DIGEST: predictions.split_digest} if predictions.split == "test" else {}
    run.set_tags({BUNDLE_DIGEST: predictions.bundle_digest, **of_test})
    for file in (directory / PREDICTIONS_FILE, directory / SLICES_FILE):
        if file.exists():  # of an ensemble there are no slices
            run.log_artifact(file, TEST)
    run.log_artifact(directory / FIGURES_FOLDER, "figures")
    return metrics
