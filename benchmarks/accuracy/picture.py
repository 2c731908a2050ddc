"""The picture of a benchmark: test accuracy against seconds, a panel per set, a line per peer."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.accuracy.intervals import wilson
from benchmarks.accuracy.results import Result, Run
from benchmarks.accuracy.runners import OURS, PEERS
from graftline.report.style import BLUE, GREEN, INK, MUTED, PURPLE, VERMILLION, new_figure, save, styled

COLORS = {
    "graftline": BLUE,
    "graftline-minutes": BLUE,
    "graftline-search": BLUE,
    "plain": MUTED,
    "fastai": VERMILLION,
    "timm": GREEN,
    "autogluon": PURPLE,
}
MARKERS = {"graftline": "*", "graftline-minutes": "o", "graftline-search": "D"}
COLUMNS, PANEL_INCHES = 3, (3.4, 2.7)
SUBTITLE = "EfficientNet-Lite0, same cores, images and weights; seconds until the model is trained; bars: 95 %"
SECONDS = (15, 30, 60, 120, 300, 600, 1200, 3600, 7200)  # that may have a tick
ACCURACIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998)  # likewise
BEST = 0.9985  # where the scale ends: the logit of 1 is infinite


@styled()
def draw_picture(results: Mapping[Run, Result], file: Path) -> None:
    """Draw all results into a PNG file."""
    sets = list(dict.fromkeys(run.image_set for run in results))
    columns = min(COLUMNS, len(sets))
    rows = math.ceil(len(sets) / columns)
    size = (PANEL_INCHES[0] * columns + 0.3, PANEL_INCHES[1] * rows + 1.3)
    figure = new_figure(*size, "Test accuracy for the seconds spent", SUBTITLE)
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number < len(sets):
            here = [result for run, result in results.items() if run.image_set == sets[number]]
            _draw_panel(axes, sets[number], here)
        else:
            axes.set_visible(False)
    present = [peer for peer in PEERS if any(run.peer == peer for run in results)]
    handles = [Line2D([], [], label=PEERS[peer].title, **_look(peer)) for peer in present]
    figure.legend(handles=handles, loc="outside lower left", ncols=min(4, len(handles)))
    save(figure, file)


def _draw_panel(axes: Axes, title: str, results: Sequence[Result]) -> None:
    """Draw one set: a line per peer through its budgets, with the interval of each score."""
    for peer in PEERS:
        found = sorted((result for result in results if result.run.peer == peer), key=lambda one: one.trained_seconds)
        points = _means(found)
        if not points:
            continue
        seconds, scores, sizes = zip(*points, strict=True)
        limits = [wilson(score, size) for score, size in zip(scores, sizes, strict=True)]
        shown = [min(score, BEST) for score in scores]
        below = [max(score - low, 0.0) for score, (low, _) in zip(shown, limits, strict=True)]
        above = [max(min(high, BEST) - score, 0.0) for score, (_, high) in zip(shown, limits, strict=True)]
        look = _look(peer)
        axes.errorbar(seconds, shown, yerr=[below, above], elinewidth=0.9, capsize=0, **look)
    axes.set_title(
        f"{title}, {max(result.num_images for result in results):,} test images", loc="left", fontsize=10, color=INK
    )
    _scale(axes, results)


def _means(results: Sequence[Result]) -> list[tuple[float, float, int]]:
    """Return seconds, accuracy and images of each budget; means over the seeds."""
    groups: dict[float | None, list[Result]] = {}
    for result in results:
        groups.setdefault(result.run.minutes, []).append(result)
    return sorted(
        (
            sum(result.trained_seconds for result in group) / len(group),
            sum(result.accuracy for result in group) / len(group),
            group[0].num_images,
        )
        for group in groups.values()
    )


def _look(peer: str) -> dict[str, Any]:
    is_ours = peer in OURS
    return {
        "color": COLORS[peer],
        "marker": MARKERS.get(peer, "o"),
        "markersize": 11 if peer == "graftline" else 5.5 if is_ours else 4,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
        "linewidth": 2.2 if is_ours else 1.3,
        "linestyle": "--" if peer == "graftline-search" else "-",
        "zorder": 4 if is_ours else 3,
    }


def _scale(axes: Axes, results: Sequence[Result]) -> None:
    """Scale seconds by their logarithm and accuracy by its logit, so that half the errors is a step anywhere."""
    seconds = [result.trained_seconds for result in results]
    low, high = min(seconds) / 1.25, max(seconds) * 1.25
    axes.set(xscale="log", xlim=(low, high))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([tick for tick in SECONDS if low <= tick <= high])
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g} s" if value < 60 else f"{value / 60:g} min")
    )
    limits = [limit for result in results for limit in wilson(result.accuracy, result.num_images)]
    bottom, top = max(min(limits) / 1.02, 0.02), 1 - (1 - min(max(limits), BEST)) / 1.15  # with some room
    axes.set_yscale("logit")
    axes.set_ylim(bottom, top)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(_apart(bottom, top))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def _apart(bottom: float, top: float) -> list[float]:
    """Return the accuracies between two that get a tick: so far apart that their numbers do not touch."""
    least = (_logit(top) - _logit(bottom)) / 12
    ticks: list[float] = []
    for tick in reversed(ACCURACIES):
        if bottom <= tick <= top and (not ticks or _logit(ticks[-1]) - _logit(tick) > least):
            ticks.append(tick)
    return ticks


def _logit(accuracy: float) -> float:
    return math.log(accuracy / (1 - accuracy))
