"""The charts of the report: how well classes separate, whether probabilities are honest, how a training went.

Letters: N images.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from graftline.evaluation.bootstrap import CALIBRATION_BINS
from graftline.evaluation.class_curves import ClassCurves, curves_of_classes, reliability
from graftline.evaluation.coverage import accuracy_at, coverage_curve
from graftline.evaluation.grid import GridRow
from graftline.evaluation.metrics import Interval, format_interval, format_score
from graftline.evaluation.predictions import Predictions
from graftline.report.captions import CAPTIONS, HEADINGS
from graftline.report.chart import Axis, Chart, Series
from graftline.report.grid_tables import describe, points

CLASS_STYLES = (0, 1, 2, 3, *range(10, 18))  # of the curves of classes that are named: each has its color and dashes
GRAY, AVERAGE = -1, 9  # styles
FEWEST_COVERED = 10  # images; the share of fewer that is right jumps about
MARKED = (0.5, 0.8, 0.9)  # shares of images that are answered


def curve_charts(predictions: Predictions, scores: Mapping[str, Interval], names: Sequence[str]) -> list[Chart]:
    """Return ROC and precision-recall curves; no ROC curve where the images are of a single class.

    Args:
        predictions: of N images and K classes.
        scores: of them, with their intervals.
        names: K, of the classes as the legends have room for them.
    """
    charts = [_roc(predictions, scores["auroc"], names)] if "auroc" in scores else []
    return [*charts, _precision_recall(predictions, names)]


def _roc(predictions: Predictions, auroc: Interval, names: Sequence[str]) -> Chart:
    found = curves_of_classes(predictions).roc
    area = f"{format_score('auroc', auroc.value)}, 95 % interval {format_interval('auroc', auroc)}"
    series = [Series("guessing", (0.0, 1.0), (0.0, 1.0), GRAY)]
    if len(names) == 2:
        positive, said = predictions.labels == 1, predictions.predicted == 1
        what = f"“{names[1]}” found among “{names[0]}”"
        series.append(Series(what, found.grid, found.curves[1], 0, "area"))
        series.append(
            Series("as answered", [float(said[~positive].mean())], [float(said[positive].mean())], 1, "points")
        )
    else:
        series += _class_series(found, names)
    return Chart(
        HEADINGS["roc_curves"],
        CAPTIONS["roc_curves"],
        f"ROC curve. Area under it: {area}.",
        Axis.shares("other images falsely reported, %"),
        Axis.shares("images of the class found, %"),
        series,
        f"AUROC {area}",
    )


def _precision_recall(predictions: Predictions, names: Sequence[str]) -> Chart:
    found = curves_of_classes(predictions).precision_recall
    series = _class_series(found, names)
    mean = f"{found.mean_area:.3f}"
    lowest = min(float(one.y[len(one.y) // 2 :].min()) for one in series if isinstance(one.y, np.ndarray))
    return Chart(
        HEADINGS["precision_recall_curves"],
        CAPTIONS["precision_recall_curves"],
        f"Precision against recall. Average precision, mean over the classes: {mean}.",
        Axis.shares("images of the class found (recall), %"),
        Axis.shares("reports that are right (precision), %", 0.0 if lowest < 0.6 else 0.5),
        series,
        f"average precision {mean}",
    )


def _class_series(found: ClassCurves, names: Sequence[str]) -> list[Series]:
    """Return the curves of some classes, and from three on their average."""
    named = found.named(len(CLASS_STYLES))
    worst = "" if len(named) == len(found.curves) else ", among the worst"
    series = [
        Series(f"{names[number]} {found.areas[number]:.3f}{worst}", found.grid, found.curves[number], style)
        for style, number in zip(CLASS_STYLES, named, strict=False)
    ]
    if len(found.curves) > 2:
        series.append(Series(f"average {found.mean_area:.3f}", found.grid, found.average, AVERAGE))
    return series


def reliability_charts(predictions: Predictions, ece: Interval) -> list[Chart]:
    """Return how often the model is right against how sure it is, and how sure it is of how many images."""
    found, width = reliability(predictions), 1 / CALIBRATION_BINS
    low = max(0.0, float(found.used[0]) * width - 0.01)
    sure = Axis.shares("probability of the predicted class, %", low)
    ends = np.column_stack([found.low, found.high])
    error = f"{ece.value:.3f}, 95 % interval {format_interval('ece', ece)}"
    diagonal = Chart(
        HEADINGS["reliability_diagram"],
        CAPTIONS["reliability_diagram"],
        f"Share of right predictions against their probability. Calibration error {error}. {found.sentence}",
        sure,
        Axis.shares("predictions that are right, %"),
        [
            Series("as sure as right", (sure.low, 1.0), (sure.low, 1.0), GRAY),
            Series("share that is right, with 95 % interval", found.sure, found.right, 0, "points", ends),
        ],
        f"ECE {error}",
    )
    edges = np.maximum(np.arange(CALIBRATION_BINS) * width, sure.low)[found.used]
    counts = found.counts[found.used].astype(float)
    histogram = Chart(
        HEADINGS["confidences"],
        CAPTIONS["confidences"],
        f"Histogram of the probabilities of the predicted class: {100 * found.mean_sure:.1f} % on average, and "
        f"{100 * found.mean_right:.1f} % are right.",
        sure,
        Axis.around("images", [0.0, *counts]),
        [Series("", edges, counts, 0, "bars", width=width)],
        found.sentence,
    )
    return [diagonal, histogram]


def coverage_chart(predictions: Predictions) -> Chart:
    """Return the accuracy on the images that the model is surest of against their share of all."""
    coverage, accuracy = coverage_curve(predictions)
    drawn = slice(min(FEWEST_COVERED, len(coverage)) - 1, None)
    marked = [accuracy_at(predictions, share) for share in MARKED]
    lowest = min(float(accuracy[drawn].min()), *(one.low for one in marked))
    surest = marked[1]
    interval = f"95 % interval {format_interval('accuracy', surest)}"
    said = f"Of the surest 80 %, {format_score('accuracy', surest.value)} are right"
    return Chart(
        HEADINGS["coverage_curve"],
        CAPTIONS["coverage_curve"],
        f"Accuracy against the share of images that is answered, the surest first. {said}, {interval}.",
        Axis.shares("images that are answered, the surest first, %"),
        Axis.shares("of these right, %", lowest),
        [
            Series("all images", (0.0, 1.0), (float(accuracy[-1]),) * 2, GRAY),
            Series("share of them that is right", coverage[drawn], accuracy[drawn]),
            Series(
                "with 95 % interval",
                MARKED,
                [one.value for one in marked],
                1,
                "points",
                [(one.low, one.high) for one in marked],
            ),
        ],
        f"{said} ({interval})",
    )


def training_charts(epochs: Sequence[Mapping[str, float]], best: Mapping[str, float]) -> list[Chart]:
    """Return loss and validation accuracy by epoch, the one that is kept marked; none of a single epoch."""
    if len(epochs) < 2:
        return []
    numbers = [one["epoch"] + 1 for one in epochs]
    kept = best["epoch"] + 1
    across = Axis("epoch", *_epochs(len(epochs)))
    training, validation, calibrated, accuracies = (
        [one.get(name, np.nan) for one in epochs]
        for name in ("train/loss", "val/loss", "val/calibrated_loss", "val/accuracy")
    )
    lowest = best["val/calibrated_loss"]
    loss = Chart(
        HEADINGS["training_loss"],
        CAPTIONS["training_loss"],
        f"Loss of training and validation images by epoch. Epoch {kept:.0f} of {len(epochs)} is kept, with a "
        f"validation loss of {lowest:.3f} once it is calibrated.",
        across,
        Axis.around("log loss", [one for one in [*training, *validation, *calibrated] if np.isfinite(one)]),
        [
            Series("training images", numbers, training, 1),
            Series("validation images", numbers, validation, 0),
            Series("validation images, calibrated", numbers, calibrated, 2),
            Series("kept", [kept], [lowest], 2, "points"),
        ],
        f"epoch {kept:.0f} is kept: validation loss {lowest:.3f}, calibrated",
    )
    if not np.isfinite(accuracies).all():
        return [loss]
    accuracy = Chart(
        HEADINGS["training_accuracy"],
        CAPTIONS["training_accuracy"],
        f"Accuracy on validation images by epoch: {100 * best['val/accuracy']:.1f} % in the epoch that is kept.",
        across,
        Axis.around("validation images right, %", accuracies, "%"),
        [
            Series("validation images", numbers, accuracies, 0),
            Series("kept", [kept], [best["val/accuracy"]], 2, "points"),
        ],
        f"epoch {kept:.0f} is kept: {100 * best['val/accuracy']:.1f} %",
    )
    return [loss, accuracy]


def _epochs(number: int) -> tuple[float, float, tuple[float, ...]]:
    """Return the ends and ticks of an axis of epochs."""
    step = next(one for one in (1, 2, 5, 10, 20, 50, 100, 200, 500, number) if number / one <= 8)
    ticks = sorted({1, *range(step, number + 1, step)})
    return 1.0, float(number), tuple(float(tick) for tick in ticks)


def grid_chart(rows: Sequence[GridRow]) -> Chart:
    """Return accuracy against time of members x crops, those that are worth their time joined."""
    sizes = sorted({len(row.members) for row in rows})
    frontier = sorted((row for row in rows if row.is_on_frontier), key=lambda row: row.milliseconds)
    series = [
        Series(
            "worth their time", [row.milliseconds for row in frontier], [row.accuracy.value for row in frontier], GRAY
        )
    ]
    for style, size in enumerate(sizes):
        group = [row for row in rows if len(row.members) == size]
        label = f"{size} member{'' if size == 1 else 's'}, on so many crops"
        names = [row.crops for row in group] if len(rows) <= 24 else []
        ends = [(row.accuracy.low, row.accuracy.high) for row in group]
        times, values = [row.milliseconds for row in group], [row.accuracy.value for row in group]
        series.append(Series(label, times, values, style % 6, "points", ends, names))
    ends_of_all = [end for row in rows for end in (row.accuracy.low, row.accuracy.high)]
    gained = f"{describe(rows[-1])}: {points(rows[-1].accuracy_gain)} points over {describe(rows[0])}"
    return Chart(
        "Accuracy against time",
        CAPTIONS["members_and_crops"],
        f"Accuracy against milliseconds per image. {gained}.",
        Axis.ratios("milliseconds per image, on this machine", [row.milliseconds for row in rows]),
        Axis.around("accuracy, %", ends_of_all, "%"),
        series,
        gained,
    )
