"""The pictures of an evaluation: which classes are confused, how well they separate, whether probabilities are honest.

Each function returns a matplotlib Figure of its own (Agg, no pyplot state). Legend of letters: N images, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from sklearn import metrics as sklearn_metrics

from graftline.bundle.decision import MOST_PROBABLE
from graftline.data.decode import decode_rgb
from graftline.evaluation.bootstrap import CALIBRATION_BINS, Ints
from graftline.evaluation.class_curves import ClassCurves, curves_of_classes, reliability
from graftline.evaluation.curves import roc_curve
from graftline.evaluation.metrics import Interval, format_interval, format_score
from graftline.evaluation.predictions import Predictions
from graftline.report.coverage_figure import coverage_figure
from graftline.report.names import legend_label, short_names
from graftline.report.style import (
    BLUE,
    CATEGORIES,
    GRID,
    INK,
    MUTED,
    PAPER,
    RIGHT,
    VERMILLION,
    WRONG,
    new_figure,
    styled,
    unit_square,
)

MOST_ANNOTATED = 20  # classes; beyond, numbers in the cells cannot be read
TOP_CONFUSIONS = 12
MISTAKES_SHOWN, MISTAKES_PER_ROW = 12, 4
DASHES = (0, (4, 4))
SQUARE = (6.4, 6.8)  # inches; the usual size, so that pictures line up side by side


def draw_evaluation(predictions: Predictions, scores: Mapping[str, Interval]) -> dict[str, Figure]:
    """Return the figures that the images allow: no ROC curve of a single class, no mistakes where there are none."""
    drawn = {"confusion_matrix": confusion_matrix(predictions)}
    if "auroc" in scores:
        drawn["roc_curves"] = roc_curves(predictions, scores["auroc"])
    drawn["precision_recall_curves"] = precision_recall_curves(predictions)
    drawn["reliability_diagram"] = reliability_diagram(predictions, scores["ece"])
    drawn["coverage_curve"] = coverage_figure(predictions)
    if (mistakes := confident_mistakes(predictions)) is not None:
        drawn["confident_mistakes"] = mistakes
    return drawn


@styled()
def confusion_matrix(predictions: Predictions) -> Figure:
    """Draw the confusion matrix: counts and shares of the row up to 20 classes, beyond that the top confusions too."""
    labels, class_names = predictions.labels, predictions.class_names
    num_classes = len(class_names)
    counts = sklearn_metrics.confusion_matrix(labels, predictions.predicted, labels=np.arange(num_classes))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = int(counts.sum() - np.trace(counts))
    title = f"{wrong:,} of {len(labels):,} images classified wrongly"
    subtitle = "Row: true class. Column: prediction. Shade: share of the row; blue is right, orange is wrong."
    if num_classes > MOST_ANNOTATED:
        return _large_confusion(counts, shares, class_names, title, subtitle)
    width, height = SQUARE if num_classes <= 8 else (0.5 * num_classes + 2.4, 0.5 * num_classes + 2.4)
    figure = new_figure(width, height, title, subtitle)
    axes = figure.subplots()
    _draw_matrix(axes, shares)
    names = short_names(class_names, 18)
    rows = [f"{name}\n{total:,} images" for name, total in zip(names, counts.sum(axis=1), strict=True)]
    axes.set_xticks(np.arange(num_classes), names, **_slant(names))
    axes.set_yticks(np.arange(num_classes), rows)
    axes.tick_params(length=0, labelcolor=INK, labelsize=10 if num_classes <= 8 else 8)
    axes.set(xlabel="predicted", ylabel="true class")
    _annotate(axes, counts, shares)
    return figure


def _slant(names: Sequence[str]) -> dict[str, Any]:
    room = 40 / len(names)  # characters per column
    return {} if max(map(len, names)) <= room else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}


def _draw_matrix(axes: Axes, shares: npt.NDArray[np.float64]) -> None:
    """Shade right answers blue and mistakes orange; the square root lifts rare mistakes out of the paper's white."""
    colors = WRONG(np.sqrt(shares))  # (K, K, 4)
    on_diagonal = np.arange(len(shares))
    colors[on_diagonal, on_diagonal] = RIGHT(np.diag(shares))
    axes.imshow(colors, interpolation="nearest")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _annotate(axes: Axes, counts: Ints, shares: npt.NDArray[np.float64]) -> None:
    num_classes = len(counts)
    size = float(np.clip(66 / num_classes, 7.5, 18))
    for row, column in np.ndindex(counts.shape):
        count, share = counts[row, column], shares[row, column]
        if count == 0 and num_classes > 2:
            continue  # an empty cell shows where nothing happens better than a zero
        is_dark = share > 0.5 if row == column else share > 0.35
        color = PAPER if is_dark else INK
        axes.text(column, row - 0.02, f"{count:,}", ha="center", va="bottom", color=color, size=size, weight="bold")
        per_cent = f"{100 * share:.1f} %" if num_classes <= 8 else f"{100 * share:.0f} %"
        axes.text(column, row + 0.05, per_cent, ha="center", va="top", color=color, size=max(6, 0.66 * size))
    axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.grid(visible=True, which="minor", color=PAPER, linewidth=2.5 if num_classes <= 8 else 1.2)
    axes.tick_params(which="minor", length=0)


def _large_confusion(
    counts: Ints, shares: npt.NDArray[np.float64], class_names: Sequence[str], title: str, subtitle: str
) -> Figure:
    figure = new_figure(11.5, 6.2, title, subtitle)
    matrix, bars = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _draw_matrix(matrix, shares)
    matrix.spines[:].set_visible(True)
    matrix.spines[:].set_color(GRID)
    matrix.set(xlabel="predicted class, by number", ylabel="true class, by number")

    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:TOP_CONFUSIONS]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(order, counts.shape), strict=True)]
    pairs = [pair for pair in pairs if mistakes[pair] > 0]
    bars.barh(np.arange(len(pairs)), [mistakes[pair] for pair in pairs], color=VERMILLION, height=0.42)
    names = short_names(class_names, 28)
    for position, (row, column) in enumerate(pairs):
        text = f"{names[row]} → {names[column]}"
        bars.text(0, position - 0.3, text, va="bottom", size=9)
        share = f" {mistakes[row, column]:,}  ({100 * shares[row, column]:.0f} % of the class)"
        bars.text(mistakes[row, column], position, share, va="center", size=8.5, color=MUTED)
    bars.set_title("Most frequent confusions: true → predicted", loc="left", size=10, weight="bold")
    bars.set(ylim=(TOP_CONFUSIONS - 0.5, -0.9), xticks=[], yticks=[], xlim=(0, 1.45 * max(1, mistakes.max())))
    bars.grid(visible=False)
    bars.spines[:].set_visible(False)
    return figure


@styled()
def roc_curves(predictions: Predictions, auroc: Interval) -> Figure:
    """Draw the ROC curve of the second class, or with more classes one of each against the rest and their average.

    Args:
        predictions: of images of two classes at least.
        auroc: the area with its interval.
    """
    probabilities, labels, class_names = predictions.probabilities, predictions.labels, predictions.class_names
    is_binary = len(class_names) == 2
    area = f"{format_score('auroc', auroc.value)} ({format_interval('auroc', auroc)})"
    names = short_names(class_names)
    what = f"“{names[1]}” against “{names[0]}”" if is_binary else "average of each class against the rest"
    figure = new_figure(*SQUARE, f"Area under the ROC curve: {area}", f"95 % interval in brackets; {what}.")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=DASHES)
    axes.annotate("chance", (0.5, 0.5), xytext=(6, -6), color=MUTED, rotation=45, ha="center", va="center", **_OFFSET)
    if is_binary:
        positive = labels == 1
        false, true = roc_curve(positive, probabilities[:, 1])
        axes.fill_between(false, true, color=BLUE, alpha=0.1, linewidth=0)
        axes.plot(false, true, color=BLUE)
        said = predictions.predicted == 1
        point = (np.mean(said[~positive]), np.mean(said[positive]))
        axes.plot(*point, "o", color=VERMILLION, markersize=8, markeredgecolor=PAPER, zorder=5)
        said_at = "  as classified (p = 0.5)" if predictions.decision == MOST_PROBABLE else "  as classified"
        axes.annotate(said_at, point, color=VERMILLION, va="top", xytext=(4, -5), **_OFFSET)
    else:
        _draw_class_curves(axes, curves_of_classes(predictions).roc, class_names, "lower right")
    unit_square(axes)
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate (recall)")
    return figure


_OFFSET: dict[str, Any] = {"textcoords": "offset points", "size": 9}


@styled()
def precision_recall_curves(predictions: Predictions) -> Figure:
    """Draw precision against recall for each class against the rest, and the average for more than two.

    Two classes get a curve each as well: which of them is the interesting one is the reader's to say.
    """
    labels, class_names = predictions.labels, predictions.class_names
    curves = curves_of_classes(predictions).precision_recall
    figure = new_figure(
        *SQUARE,
        f"Average precision: {curves.mean_area:.3f}",
        "Mean over the classes, each against the rest. Further to the upper right is better.",
    )
    axes = figure.subplots()
    if len(class_names) == 2:
        for number in curves.curves:
            axes.axhline(np.mean(labels == number), color=CATEGORIES[number], linewidth=1, linestyle=DASHES)
        axes.plot([], [], color=MUTED, linewidth=1, linestyle=DASHES, label="guessing")
    _draw_class_curves(axes, curves, class_names, "lower left")
    unit_square(axes)
    axes.set(xlabel="recall", ylabel="precision")
    return figure


def _draw_class_curves(
    axes: Axes, found: ClassCurves, class_names: Sequence[str], corner: Literal["lower left", "lower right"]
) -> None:
    """Draw a curve per class, of many classes only the worst few in color, and from three on their average."""
    named = found.named(len(CATEGORIES))
    others = [np.column_stack([found.grid, curve]) for number, curve in found.curves.items() if number not in named]
    # one object for all: a line each takes seconds where there are a thousand
    axes.add_collection(LineCollection(others, colors="#b5bcc8", linewidths=0.7, alpha=0.55), autolim=False)
    if others:
        axes.plot([], [], color="#b5bcc8", label=f"{len(others):,} other classes")
    names = short_names(class_names)
    for color, number in zip(CATEGORIES, named, strict=False):
        label = f"{names[number]}  {found.areas[number]:.3f}"
        axes.plot(found.grid, found.curves[number], color=color, linewidth=1.5, label=legend_label(label))
    if len(class_names) > 2:
        label = f"average  {found.mean_area:.3f}"
        axes.plot(found.grid, found.average, color=INK, linewidth=2.4, label=label)
    heading = "area under the curve" if not others else "area under the curve, worst classes"
    axes.legend(loc=corner, title=heading, alignment="left")


@styled()
def reliability_diagram(predictions: Predictions, ece: Interval) -> Figure:
    """Draw how often the model is right against how sure it is, above a histogram of how sure it is.

    Bins as in the calibration error (Guo et al. 2017, arXiv 1706.04599): 15 of equal width over 0..1. The upright lines
    are 95 % Wilson intervals of each bin's accuracy.

    Args:
        predictions: of N images.
        ece: the expected calibration error with its interval.
    """
    found = reliability(predictions)
    used, sure, right = found.used, found.sure, found.right
    area = f"{ece.value:.3f} ({format_interval('ece', ece)})"
    figure = new_figure(*SQUARE, f"Calibration error: {area}", f"95 % interval in brackets. {found.sentence}")
    top, bottom = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)

    width, edges = 1 / CALIBRATION_BINS, np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
    top.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=DASHES, label="perfect calibration")
    top.bar(edges[used], right, width, align="edge", color="#cfe3f1", edgecolor=PAPER, linewidth=1.2)
    top.vlines(sure, found.low, found.high, color=BLUE, linewidth=1.3)
    top.plot(sure, right, "o", color=BLUE, markersize=6, markeredgecolor=PAPER, label="share that is right")
    top.vlines(
        sure,
        np.minimum(sure, right),
        np.maximum(sure, right),
        color=VERMILLION,
        linewidth=3.4,
        alpha=0.75,
        label="gap",
        zorder=1.5,
    )
    top.set(ylim=(-0.015, 1.015), ylabel="share of predictions that are right")
    top.legend(loc="upper left")

    bottom.bar(edges, found.counts, width, align="edge", color="#aab4c3", edgecolor=PAPER, linewidth=1.2)
    bottom.axvline(found.mean_sure, color=INK, linewidth=1.4, label="mean probability")
    bottom.axvline(found.mean_right, color=BLUE, linewidth=1.4, label="accuracy")
    bottom.set(ylabel="images", xlabel="probability of the predicted class", xlim=(edges[used[0]] - 0.01, 1.01))
    bottom.grid(visible=False, axis="x")
    bottom.legend(loc="best")
    return figure


@styled()
def confident_mistakes(predictions: Predictions) -> Figure | None:
    """Show the images that the model got wrong while it was surest, up to 12 of them.

    Returns:
        The sheet, or None if there is no mistake.

    Raises:
        graftline.data.decode.DecodeError: an image has vanished since it was classified.
    """
    predicted, labels, class_names = predictions.predicted, predictions.labels, predictions.class_names
    confidences, mistakes = predictions.confidences, predictions.surest_mistakes
    if len(mistakes) == 0:
        return None
    shown = mistakes[:MISTAKES_SHOWN]
    rows = -(-len(shown) // MISTAKES_PER_ROW)
    figure = new_figure(
        9.2,
        2.7 * rows + 0.95,
        "The most confident mistakes",
        f"{len(shown)} of {len(mistakes):,}, the surest first. Orange: prediction and probability. Below: label.",
    )
    cells = figure.subplots(rows, MISTAKES_PER_ROW, squeeze=False).ravel()
    names = short_names(class_names, 15)
    for axes in cells:
        axes.set_axis_off()
    for axes, index in zip(cells, shown, strict=False):
        pixels = decode_rgb(predictions.paths[index], predictions.decoding)
        axes.imshow(_thumbnail(pixels), interpolation="antialiased")
        said = f"{names[predicted[index]]}  {_per_cent(confidences[index])}"
        label = f"labeled {names[labels[index]]}"
        below: dict[str, Any] = {"xy": (0, 0), "xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
        axes.annotate(said, xytext=(0, -6), color=VERMILLION, weight="bold", **below)
        axes.annotate(label, xytext=(0, -20), color=INK, **below)
    return figure


def _per_cent(probability: float) -> str:
    return "> 99.9 %" if probability > 0.999 else f"{100 * probability:.1f} %"


def _thumbnail(pixels: npt.NDArray[np.uint8], most: int = 400) -> npt.NDArray[np.uint8]:
    """Thin out (H, W, 3) pixels to fewer than twice ``most`` a side, and center them on a square of pale gray."""
    step = max(1, max(pixels.shape[:2]) // most)
    thin = pixels[::step, ::step]
    height, width = thin.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 243, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = thin
    return square
