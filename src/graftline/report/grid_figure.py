"""The picture of members x crops: accuracy against time, the combinations that are worth their time joined."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from graftline.evaluation.grid import GridRow
from graftline.report.grid_tables import describe, points
from graftline.report.names import legend_label
from graftline.report.style import CATEGORIES, INK, MUTED, new_figure, styled

WIDTH, HEIGHT = 8.4, 5.8  # inches
MARKERS = "osD^vP"  # told apart without color
MOST_NAMED = 24  # points with the name of their crops; more would hide each other
NARROWEST = 4.0  # of the longest time to the shortest, over which a logarithmic axis is readable


@styled()
def grid_figure(rows: Sequence[GridRow], num_images: int) -> Figure:
    """Draw accuracy with its 95 % interval against ms per image, a color and marker for each number of members.

    Args:
        rows: of `graftline.evaluation.grid.compare`.
        num_images: that they are of.
    """
    first, last = rows[0], rows[-1]
    figure = new_figure(
        WIDTH,
        HEIGHT,
        f"{describe(last)}: {points(last.accuracy_gain)} points over {describe(first)}",
        f"{num_images:,} images, 95 % intervals. The line joins what no combination of less time equals.",
    )
    axes = figure.subplots()
    sizes = sorted({len(row.members) for row in rows})
    for size in sizes:
        group = [row for row in rows if len(row.members) == size]
        color, marker = (kinds[sizes.index(size) % len(kinds)] for kinds in (CATEGORIES, MARKERS))
        times, values = [row.milliseconds for row in group], [row.accuracy.value for row in group]
        reach = [
            [row.accuracy.value - row.accuracy.low for row in group],
            [row.accuracy.high - row.accuracy.value for row in group],
        ]
        label = legend_label(f"{size} member{'' if size == 1 else 's'}")
        axes.errorbar(times, values, reach, fmt="none", ecolor=color, elinewidth=1.0, alpha=0.35)
        axes.scatter(times, values, s=42, color=color, marker=marker, zorder=4, label=label)
    for row in rows if len(rows) <= MOST_NAMED else ():
        color = INK if row.is_on_frontier else MUTED
        place = (row.milliseconds, row.accuracy.value)
        axes.annotate(row.crops, place, (7, 4), textcoords="offset points", color=color, size=9)
    best = sorted((row for row in rows if row.is_on_frontier), key=lambda row: row.milliseconds)
    axes.plot([row.milliseconds for row in best], [row.accuracy.value for row in best], color=INK, lw=1.2, zorder=3)
    times = [row.milliseconds for row in rows]
    if max(times) > NARROWEST * min(times):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set(xlabel="milliseconds per image, on this machine", ylabel="accuracy")
    axes.legend(loc="lower right", title="numbers: crops", alignment="left", labelcolor=MUTED)
    return figure
