"""The picture of the freeze rule ``measured``: log loss, accuracy and seconds at each boundary that was tried."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from graftline.backbones.layers import HEAD
from graftline.freezing.measurement import BoundaryResult, DepthMeasurement, Difference
from graftline.report.cost_tables import short_number
from graftline.report.names import short
from graftline.report.style import BLUE, INK, MUTED, SKY, VERMILLION, new_figure, styled

HEIGHT = 7.4  # inches
LEAST_WIDTH, BOUNDARY_WIDTH = 8.0, 1.15  # inches
PANELS = (1.25, 1.25, 1.0)  # heights of log loss, accuracy, seconds, relative to each other
BAR_WIDTH = 0.5  # of the distance between two boundaries
BAND = "#eef4f9"  # behind the chosen boundary


@styled()
def depth_figure(measurement: DepthMeasurement) -> Figure | None:
    """Draw what was measured against depth, from the head down.

    A bar at a point is the paired 95 % interval of its difference to the chosen boundary: where it crosses the dashed
    line, the two cannot be told apart.

    Returns:
        The figure, or None if fewer than two boundaries were tried.
    """
    rows = measurement.rows
    if len(rows) < 2:
        return None
    figure = new_figure(
        max(LEAST_WIDTH, 2.2 + BOUNDARY_WIDTH * len(rows)),
        HEIGHT,
        _title(rows, measurement.chosen),
        f"{measurement.judged_by}; bars: 95 % interval of the paired difference to the chosen one",
    )
    losses, accuracies, seconds = figure.subplots(3, sharex=True, gridspec_kw={"height_ratios": PANELS})
    _draw_points(losses, rows, measurement.chosen, [row.log_loss for row in rows], [row.more_log_loss for row in rows])
    _draw_points(
        accuracies, rows, measurement.chosen, [row.accuracy for row in rows], [row.more_accuracy for row in rows]
    )
    losses.set_ylabel("log loss\n(lower is better)")
    accuracies.set_ylabel("accuracy\n(higher is better)")
    accuracies.yaxis.set_major_formatter(PercentFormatter(1.0))
    _draw_seconds(seconds, rows)
    _draw_chosen((losses, accuracies, seconds), rows.index(measurement.chosen))
    _name_boundaries(seconds, measurement)
    for axes in figure.axes:
        axes.tick_params(axis="x", length=0, labelcolor=INK)
        axes.grid(visible=False, axis="x")
    figure.align_ylabels()
    return figure


def _title(rows: Sequence[BoundaryResult], chosen: BoundaryResult) -> str:
    """Say what was found, with its number."""
    head = [row for row in rows if row.boundary == HEAD][-1]
    if chosen is head:
        return f"More than the head did not pay: {100 * head.accuracy:.1f} % right with the head alone"
    lowest = short(chosen.boundary.partition(" + ")[0], 18)
    return f"Training from {lowest} pays: {head.more_log_loss.value:.3f} less log loss than the head alone"


def _draw_points(
    axes: Axes,
    rows: Sequence[BoundaryResult],
    chosen: BoundaryResult,
    values: Sequence[float],
    differences: Sequence[Difference],
) -> None:
    """Draw a value for each boundary, with the interval of its difference to that of the chosen one."""
    reference = values[rows.index(chosen)]
    axes.axhline(reference, color=VERMILLION, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(range(len(rows)), values, color=BLUE, linewidth=1.2, alpha=0.45, zorder=2)
    for number, (row, value, difference) in enumerate(zip(rows, values, differences, strict=True)):
        color = VERMILLION if row is chosen else BLUE
        below, above = difference.value - difference.low, difference.high - difference.value
        axes.errorbar(
            number,
            value,
            [[below], [above]],
            fmt="o",
            color=color,
            markersize=8 if row is chosen else 6,
            elinewidth=2.0,
            capsize=0,
            zorder=3,
        )
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(y=0.15)


def _draw_seconds(axes: Axes, rows: Sequence[BoundaryResult]) -> None:
    """Draw the fit on top of the frozen pass, with the sum above."""
    numbers = range(len(rows))
    passes, fits = [row.pass_seconds for row in rows], [row.fit_seconds for row in rows]
    axes.bar(numbers, passes, BAR_WIDTH, color=SKY, label="frozen pass, once")
    axes.bar(numbers, fits, BAR_WIDTH, bottom=passes, color=BLUE, label="fit")
    for number, row in enumerate(rows):
        total = row.pass_seconds + row.fit_seconds
        text = f"{total:.0f} s" if total >= 10 else f"{total:.1f} s"
        text += "" if row.cached else ", live"
        axes.annotate(
            text, (number, total), (0, 3), textcoords="offset points", ha="center", va="bottom", size=8.5, color=MUTED
        )
    axes.set_ylabel("seconds")
    axes.margins(y=0.15)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        frameon=False,
        ncols=2,
        labelcolor=MUTED,
        fontsize=8.5,
    )


def _draw_chosen(panels: Sequence[Axes], number: int) -> None:
    """Put a band behind the chosen boundary, through all panels."""
    for axes in panels:
        axes.axvspan(number - 0.42, number + 0.42, color=BAND, linewidth=0, zorder=0)
    panels[0].annotate(
        "chosen",
        (number, 1),
        (0, 3),
        ("data", "axes fraction"),
        "offset points",
        ha="center",
        va="bottom",
        size=9,
        weight="bold",
        color=VERMILLION,
    )


def _name_boundaries(axes: Axes, measurement: DepthMeasurement) -> None:
    """Write below each boundary what is trained, how many parameters that is, and below all why it ends there."""
    rows = measurement.rows
    parts = [_from(row, rows[:number]) for number, row in enumerate(rows)]
    parameters = [short_number(row.trained_parameters) for row in rows]
    axes.set_xticks(range(len(rows)), [f"{part}\n{number}" for part, number in zip(parts, parameters, strict=True)])
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"trained parameters; {measurement.stopped}", color=MUTED)


def _from(row: BoundaryResult, earlier: Sequence[BoundaryResult]) -> str:
    """Return what is trained, and whether it was tried before: on fewer images, or then this one went on from there."""
    if row.boundary == HEAD:
        return "head alone, again" if earlier else "head alone"
    name = short(row.boundary.partition(" + ")[0], 14)
    return f"+ {name}, longer" if any(one.boundary == row.boundary for one in earlier) else f"+ {name}"
