"""The pictures of an evaluation, each an SVG file of its own: the charts of the page, confusions, mistakes, slices.

MLflow, notebooks and browsers show them; nothing but the standard library and the templates draws them.
"""

import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graftline.evaluation.metrics import Interval
from graftline.evaluation.predictions import Predictions
from graftline.evaluation.slices import Slice
from graftline.report.chart import HEIGHT, WIDTH, Axis, Chart
from graftline.report.charts import coverage_chart, curve_charts, reliability_charts
from graftline.report.confusion import Cell, matrix_cells, most_confused
from graftline.report.mistakes import Mistake, surest_mistakes
from graftline.report.page import write_page
from graftline.report.shortening import printable, shorten_all

MARGIN, HEAD, LINE = 14, 45, 15  # units of a drawing: around it, to its first line of text, from line to line
LETTER = 6.3  # width of a letter, on average
LONG_NAME, SHORT_NAME, SHORTEST_NAME = 28, 18, 15  # letters of a class name: in a list, at a matrix, below an image
LEGEND = 81  # where the texts of a chart's legend begin
TOP_CONFUSIONS, MOST_SLICES = 12, 24  # that are shown; confusions, where there are too many classes for a matrix
FEW_CLASSES, LARGE_CELL, SMALL_CELL = 8, (52, 104), 34  # up to so many classes a cell is large and has its share too
MISTAKES_PER_ROW, MISTAKE = 4, (172, 208)  # width and height of an image with its texts


@dataclass(frozen=True)
class _Figure:
    """A figure.

    Attributes:
        template: that draws it.
        heading: what it says, at best with its number.
        said: how to read it.
        size: width and height of the drawing, without the texts above and the names at its left.
        content: what the template shows.
        left: room for names at the left.
        above: room for names above the drawing.
    """

    template: str
    heading: str
    said: str
    size: tuple[float, float]
    content: Mapping[str, Any]
    left: float = 0.0
    above: float = 0.0

    def write(self, file: Path) -> Path:
        """Write it as SVG."""
        width = round(max(self.left + self.size[0] + 2 * MARGIN, WIDTH + 2 * MARGIN))
        lines = textwrap.wrap(printable(self.said), int((width - 2 * MARGIN) / (LETTER - 0.4)))
        top = HEAD + LINE * len(lines) + 2 + self.above
        texts = {"heading": printable(self.heading), "lines": lines}
        place = {"left": MARGIN + self.left, "top": top, "width": width, "height": round(top + self.size[1] + MARGIN)}
        return write_page(file, self.template, {**self.content, **texts, **place})


def write_figures(predictions: Predictions, scores: Mapping[str, Interval], directory: Path) -> dict[str, Path]:
    """Write the figures that the images allow: no ROC curve of a single class, no mistakes where there are none.

    Args:
        predictions: of the test images.
        scores: of them, with their intervals.
        directory: where to write them, as ``NAME.svg``.

    Raises:
        graftline.data.decode.DecodeError: an image has vanished since it was classified.
    """
    return {name: figure.write(directory / f"{name}.svg") for name, figure in _figures(predictions, scores)}


def write_slices_figure(slices: Sequence[Slice], file: Path) -> Path | None:
    """Write the accuracy of slices with 95 % intervals; nothing where there are none.

    Args:
        slices: in the order to show; the first ones are shown.
        file: where to write it, an SVG.
    """
    if not slices:
        return None
    worse, tested = sum(one.is_worse for one in slices), sum(one.is_tested for one in slices)
    shown = slices[:MOST_SLICES]
    axis = Axis.shares("accuracy, %", min(min(one.accuracy.low, one.rest) for one in shown))
    bottom = 20 * len(shown) + 8
    short = shorten_all([printable(one.name) for one in shown], 40)
    names = [f"{name}, {one.images:,}" for name, one in zip(short, shown, strict=True)]
    return _Figure(
        "slices.svg.j2",
        f"{worse} of {tested} slices are worse" if worse else f"None of {tested} tested slices is clearly worse",
        "Accuracy with its 95 % interval; gray bar: that on other images of the same classes. Orange diamond: worse "
        "than that, corrected for looking at all.",
        (300, bottom + 36),
        {"slices": list(zip(names, shown, strict=True)), "axis": axis, "bottom": bottom},
        left=max(map(_width, names)) + 12,
    ).write(file)


def _figures(predictions: Predictions, scores: Mapping[str, Interval]) -> Iterator[tuple[str, _Figure]]:
    yield "confusion_matrix", _confusion(predictions)
    *roc, precision_recall = curve_charts(predictions, scores, _short_names(predictions, LONG_NAME))
    for chart in roc:
        yield "roc_curves", _chart(chart)
    yield "precision_recall_curves", _chart(precision_recall)
    reliability, confidences = reliability_charts(predictions, scores["ece"])
    yield "reliability_diagram", _chart(reliability)
    yield "confidences", _chart(confidences)
    yield "coverage_curve", _chart(coverage_chart(predictions))
    if mistakes := surest_mistakes(predictions):
        names = dict(zip(predictions.class_names, _short_names(predictions, SHORTEST_NAME), strict=True))
        yield "confident_mistakes", _mistakes(mistakes, names, len(predictions.surest_mistakes))


def _short_names(predictions: Predictions, most: int) -> list[str]:
    """Return the names of the classes with so many letters at most, which tell them apart."""
    return shorten_all([printable(name) for name in predictions.class_names], most)


def _chart(chart: Chart) -> _Figure:
    labeled = [one for one in chart.series if one.label]
    width = max([WIDTH, *(LEGEND + _width(one.label) for one in labeled)])
    size = (width, HEIGHT + 12 + 17 * len(labeled))
    return _Figure("chart.svg.j2", chart.heading, chart.note, size, {"chart": chart, "labeled": labeled})


def _width(text: str) -> float:
    """Return about how wide a text is; letters of Chinese, Japanese and Korean are twice as wide as others."""
    return LETTER * sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _confusion(predictions: Predictions) -> _Figure:
    """Return the matrix with counts, up to eight classes with shares of the row; of many the top confusions."""
    cells, total = matrix_cells(predictions), len(predictions.labels)
    wrong = int((predictions.predicted != predictions.labels).sum())
    heading = f"{wrong:,} of {total:,} images classified wrongly"
    if not cells:
        long = dict(zip(predictions.class_names, _short_names(predictions, LONG_NAME), strict=True))
        return _top_confusions(most_confused(predictions, TOP_CONFUSIONS), long, heading)
    names = _short_names(predictions, SHORT_NAME)
    side = SMALL_CELL if len(names) > FEW_CLASSES else min(max(WIDTH // len(names) - 16, LARGE_CELL[0]), LARGE_CELL[1])
    totals = [sum(one.count for one in row) for row in cells]
    longest = max(map(_width, [*names, f"{max(totals):,} images"]))
    slant = max(map(_width, names)) > side
    return _Figure(
        "confusion.svg.j2",
        heading,
        "Row: true class. Column: answer. Shade: share of the row; blue is right, orange is wrong.",
        (side * len(names) + (longest / 2 if slant else 0), side * len(names)),
        {"cells": cells, "names": names, "totals": totals, "side": side, "slant": slant, "confusions": []},
        left=longest + 10,
        above=longest * 0.66 + 14 if slant else 18,
    )


def _top_confusions(confused: Sequence[Cell], names: Mapping[str, str], heading: str) -> _Figure:
    most = max((one.count for one in confused), default=1)
    shown = [
        {
            "label": names[one.label],
            "answer": names[one.answer],
            "count": one.count,
            "share": one.share,
            "width": 220 * one.count / most,
        }
        for one in confused
    ]
    said = "The most frequent confusions: true class → answer." if shown else ""
    return _Figure(
        "confusion.svg.j2",
        heading,
        said,
        (max([WIDTH, *(_width(f"{one['label']} → {one['answer']}") for one in shown)]), 34 * len(shown)),
        {"cells": [], "names": [], "confusions": shown},
        above=14,
    )


def _mistakes(mistakes: Sequence[Mistake], names: Mapping[str, str], number: int) -> _Figure:
    shown = [replace(one, label=names[one.label], answer=names[one.answer]) for one in mistakes]
    width, height = MISTAKE
    return _Figure(
        "mistakes.svg.j2",
        "The most confident mistakes",
        f"{len(shown)} of {number:,}, the surest first. Orange: answer and probability. Below: label.",
        (width * MISTAKES_PER_ROW, height * -(-len(shown) // MISTAKES_PER_ROW)),
        {"mistakes": shown, "per_row": MISTAKES_PER_ROW, "cell_width": width, "cell_height": height},
        above=4,
    )
