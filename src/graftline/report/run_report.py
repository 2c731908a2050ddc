"""The report of a run: one HTML page that needs nothing else, to read on any screen, to print, mail and archive."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from graftline.data.decoding import DecodeError
from graftline.evaluation.comparison import Comparison
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.metrics import HEADLINES, LOWER_IS_BETTER, Interval
from graftline.report.captions import CAPTIONS, HEADINGS, MEANINGS
from graftline.report.charts import coverage_chart, curve_charts, grid_chart, reliability_charts, training_charts
from graftline.report.confusion import confusion
from graftline.report.content import MembersAndCrops, PictureFile, Report, StageSummary, SuspectLabel, Training
from graftline.report.grid_tables import grid_cells
from graftline.report.mistakes import SIDE, surest_mistakes
from graftline.report.page import write_page
from graftline.report.thumbnails import Thumbnail, picture, thumbnails

T = TypeVar("T")

REPORT_FILE = "report.html"
MOST_OPEN, WITH_FOLD = 20, 12  # rows of a table; of more, so many are open and the others folded
SUMMARY_WIDTH = 1100  # px of another stage's picture: sharp enough to read, in two thirds of the bytes
TILES = ("balanced_accuracy", "auroc", "log_loss", "ece")  # beside the accuracy, at the top


def write_report(directory: Path, report: Report) -> Path:
    """Write ``report.html``, and return its path.

    Everything is inside the file, and a content security policy keeps it from asking for more. What the report leaves
    out has no section there, but for what is named as missing: that says how to get it.

    Raises:
        graftline.data.decode.DecodeError: an image has vanished since it was classified.
    """
    tested = {} if report.result is None else _tested(report.result)
    content = {
        "title": report.title,
        "report": report,
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "scores": report.scores,
        "headlines": {name: label for name, label in HEADLINES.items() if name in report.scores},
        "lower_is_better": LOWER_IS_BETTER,
        "meanings": MEANINGS,
        "captions": CAPTIONS,
        "headings": HEADINGS,
        "tiles": [name for name in TILES if name in report.scores],
        "slices": _folded(report.slices),
        "training_charts": _charts_of(report.training),
        "training_pictures": _pictures(report.training),
        "summaries": [(one, _pictures(one, SUMMARY_WIDTH), _suspects(one)) for one in report.summaries],
        "crop_pictures": _pictures(report.members_and_crops),
        "all_headlines": HEADLINES,
        "notes": [*([] if report.result is None else report.result.notes), *report.notes],
        **tested,
    }
    if (combined := report.members_and_crops) is not None:
        content |= {"grid": grid_cells(combined.rows), "grid_chart": grid_chart(combined.rows)}
    if (compared := report.comparison) is not None:
        content["compared_reach"] = _reach(compared)
    return write_page(directory / REPORT_FILE, "report.html.j2", content)


def _tested(result: EvaluationResult) -> dict[str, Any]:
    """Return what is shown of an evaluation."""
    predictions, scores = result.predictions, result.scores
    counts = np.bincount(predictions.labels, minlength=len(predictions.class_names))
    return {
        "predictions": predictions,
        "right": int((predictions.predicted == predictions.labels).sum()),
        "guess": float(counts.max() / counts.sum()),
        "confusion": confusion(predictions),
        "mistakes": surest_mistakes(predictions),
        "classes": _folded(_classes(scores, predictions.class_names, counts.tolist())),
        "curve_charts": curve_charts(predictions, scores, predictions.class_names),
        "probability_charts": [*reliability_charts(predictions, scores["ece"]), coverage_chart(predictions)],
    }


def _classes(
    scores: Mapping[str, Interval], class_names: Sequence[str], counts: Sequence[int]
) -> list[tuple[str, int, Interval | None, Interval | None]]:
    """Return name, images, recall and precision of each class, of many those that are found least first."""
    rows = [
        (name, count, scores.get(f"recall/{name}"), scores.get(f"precision/{name}"))
        for name, count in zip(class_names, counts, strict=True)
    ]
    if len(rows) > MOST_OPEN:
        rows.sort(key=lambda row: 2.0 if row[2] is None else row[2].value)
    return rows


def _charts_of(training: Training | None) -> list[Any]:
    return [] if training is None else training_charts(training.epochs, training.best)


def _pictures(
    part: Training | MembersAndCrops | StageSummary | None, most: int | None = None
) -> list[tuple[PictureFile, Thumbnail]]:
    """Return the pictures that were drawn elsewhere, as the page holds them, at most so many px wide."""
    return [] if part is None else [(one, picture(one.file, most)) for one in part.pictures]


def _suspects(summary: StageSummary) -> list[tuple[SuspectLabel, str, Thumbnail]]:
    """Return labels with the name and a thumbnail of the image; none where an image is no longer there."""
    try:
        images = list(thumbnails([one.path for one in summary.labels], summary.decoding, SIDE))
    except DecodeError:
        return []
    return [(one, Path(one.path).name, image) for one, image in zip(summary.labels, images, strict=True)]


def _reach(compared: Comparison) -> float:
    """Return how far the line of the differences reaches on both sides of zero."""
    differences = [row.differences[compared.metric] for row in compared.rows]
    return 1.1 * max([abs(end) for one in differences for end in (one.low, one.high)], default=1.0) or 1.0


def _folded(rows: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Return the rows of a table that are open, and those that are folded."""
    return (rows, []) if len(rows) <= MOST_OPEN else (rows[:WITH_FOLD], rows[WITH_FOLD:])
