"""The picture of a comparison: each model's difference to one of them, with its interval."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from graftline.evaluation.comparison import Comparison, PairedComparison, format_difference
from graftline.evaluation.metrics import HEADLINES, LOWER_IS_BETTER, SHARES, format_interval, format_score
from graftline.evaluation.verdict import ComparisonVerdict
from graftline.report.names import short, short_names
from graftline.report.style import BLUE, INK, MUTED, VERMILLION, new_figure, styled

WIDTH, ROW_HEIGHT, FRAME_HEIGHT = 10.0, 0.42, 2.0  # inches
MOST_LETTERS = 42  # of a name
BAND = "#e9ecf1"  # where no difference could show
# shapes beside colors, for who sees no colors
COLORS: dict[ComparisonVerdict, str] = {"better": BLUE, "worse": VERMILLION, "no difference shown": MUTED}
MARKERS: dict[ComparisonVerdict, str] = {"better": "^", "worse": "v", "no difference shown": "o"}


@styled()
def comparison_figure(comparison: Comparison) -> Figure:
    """Draw a forest plot: a row for each model, its difference to the reference, and the verdict in words.

    A gray band is as wide as the differences that the images could not have shown, for two that differ as often.
    """
    rows = comparison.rows
    figure = new_figure(WIDTH, FRAME_HEIGHT + ROW_HEIGHT * len(rows), _title(comparison), _subtitle(comparison))
    axes = figure.subplots()
    for number, row in enumerate(rows):
        _draw_row(axes, number, row, comparison)
    axes.axvline(0, color=INK, linewidth=1.0, zorder=2)
    names = short_names([row.name for row in rows], MOST_LETTERS)
    axes.set_yticks(range(len(rows)), names, color=INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.use_sticky_edges = False  # else a band at the edge has no margin
    axes.margins(x=0.08)
    axes.set_xlabel(_axis_label(comparison))
    return figure


def _title(comparison: Comparison) -> str:
    """Say what was found."""
    reference, told = short(comparison.reference.name, MOST_LETTERS), [row.verdict for row in comparison.rows]
    if len(told) == 1:
        name = short(comparison.rows[0].name, MOST_LETTERS)
        if told[0] == "no difference shown":
            return f"No difference shown: {name}"
        return f"{told[0].capitalize()}: {name}"
    better, worse = told.count("better"), told.count("worse")
    return f"{better} better, {worse} worse, {len(told) - better - worse} not told apart from {reference}"


def _subtitle(comparison: Comparison) -> str:
    metric, reference = comparison.metric, comparison.reference
    score = reference.scores[metric]
    value = f"{format_score(metric, score.value)} ({format_interval(metric, score)})"
    return (
        f"against {short(reference.name, MOST_LETTERS)}: {HEADLINES[metric]} {value}, "
        f"{comparison.num_images:,} images of {comparison.dataset}"
    )


def _axis_label(comparison: Comparison) -> str:
    metric = comparison.metric
    unit = ", points" if metric in SHARES else ""
    better = "left" if metric in LOWER_IS_BETTER else "right"
    label = f"difference in {HEADLINES[metric]}{unit}; bars: 95 % interval; further {better} is better"
    return f"{label}; gray: too small to show on these images" if metric == "accuracy" else label


def _draw_row(axes: Axes, number: int, row: PairedComparison, comparison: Comparison) -> None:
    metric = comparison.metric
    scale = 100 if metric in SHARES else 1
    difference = row.differences[metric]
    value, low, high = (scale * one for one in (difference.value, difference.low, difference.high))
    least = comparison.smallest_difference(row) if metric == "accuracy" else None
    if least is not None:
        axes.barh(number, 2 * scale * least, 0.62, -scale * least, color=BAND, zorder=1)
    axes.errorbar(
        value,
        number,
        xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
        fmt=MARKERS[row.verdict],
        color=COLORS[row.verdict],
        markersize=7,
        elinewidth=2.2,
        capsize=0,
        zorder=3,
    )
    axes.annotate(
        f"{format_difference(metric, difference)}   {row.verdict}",
        (1, number),
        (8, 0),
        ("axes fraction", "data"),
        "offset points",
        va="center",
        size=9,
        weight="normal" if row.verdict == "no difference shown" else "bold",
        color=COLORS[row.verdict],
        annotation_clip=False,
    )
