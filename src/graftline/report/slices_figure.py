"""The picture of slices: the accuracy of each with its interval, the worst at the top."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from graftline.evaluation.slices import Slice
from graftline.report.names import short
from graftline.report.style import BLUE, INK, VERMILLION, new_figure, styled

WIDTH, ROW, REST = 8.4, 0.27, 1.7  # inches: of the figure, of a slice, of what is around them
MOST_ROWS = 24


@styled()
def slices_figure(slices: Sequence[Slice], accuracy: float) -> Figure | None:
    """Draw the accuracy of slices with 95 % intervals; None where there are none.

    Args:
        slices: in the order to show; the first ones are shown.
        accuracy: on all images.
    """
    shown = slices[:MOST_ROWS]
    if not shown:
        return None
    worse = sum(one.is_worse for one in slices)
    title = f"{worse} of {len(slices)} slices are worse" if worse else f"None of {len(slices)} slices is surely worse"
    subtitle = "accuracy with 95 % interval; red: worse than the other images, corrected for looking at all (Holm)"
    figure = new_figure(WIDTH, REST + ROW * len(shown), title, subtitle)
    axes = figure.subplots()
    for place, one in enumerate(reversed(shown)):
        interval = one.accuracy
        axes.errorbar(
            interval.value,
            place,
            xerr=[[max(0.0, interval.value - interval.low)], [max(0.0, interval.high - interval.value)]],
            fmt="D" if one.is_worse else "o",
            color=VERMILLION if one.is_worse else BLUE,
            markersize=5,
        )
    axes.axvline(accuracy, color=INK, linewidth=0.9, linestyle=":")
    axes.set_yticks(range(len(shown)), [f"{short(one.name, 44)}, {one.images:,}" for one in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("accuracy (dotted: of all images)")
    return figure
