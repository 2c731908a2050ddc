"""The picture of a learning curve: accuracy against the number of labels, carried on to four times as many."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from graftline.evaluation.learning_curve import LearningCurve
from graftline.report.style import BLUE, INK, MUTED, VERMILLION, new_figure, styled

WIDTH, HEIGHT = 8.4, 4.8  # inches
FARTHEST = 4  # times the labels: beyond, the interval says hardly anything (Mahmood et al. 2022, arXiv 2207.01725)


def gain_in_words(curve: LearningCurve, factor: float) -> str:
    """Return what more labels would bring, in points of accuracy with the interval: ``+1.4 [0.6, 2.1] points``."""
    gain = curve.gain(factor)
    return f"{100 * gain.value:+.1f} [{100 * gain.low:.1f}, {100 * gain.high:.1f}] points"


@styled()
def learning_curve_figure(curve: LearningCurve, subtitle: str) -> Figure:
    """Draw the accuracy of each seed at each size, and the power law with its 95 % interval.

    Args:
        curve: what was measured.
        subtitle: of what and on what.
    """
    figure = new_figure(WIDTH, HEIGHT, f"Twice the labels: {gain_in_words(curve, 2)} of accuracy", subtitle)
    axes = figure.subplots()
    sizes, images = curve.sizes, curve.images
    for errors in curve.by_seed:
        axes.plot(sizes, 1 - errors, color=MUTED, linewidth=0.7, alpha=0.45)
    axes.plot(sizes, 1 - curve.errors, "o", color=BLUE, markersize=5, label="measured, mean of the subsets")
    known = np.geomspace(sizes[0], images, 60)
    axes.plot(known, [1 - curve.law.error(size)[0] for size in known], color=BLUE, label="power law")
    factors = np.geomspace(1, FARTHEST, 60)
    gains = [curve.gain(factor) for factor in factors]
    now = 1 - float(curve.law.error(images)[0])
    ahead = factors * images
    label = "carried on, with the 95 % interval of the gain"
    axes.plot(ahead, [now + gain.value for gain in gains], "--", color=VERMILLION, label=label)
    lows, highs = ([now + getattr(gain, end) for gain in gains] for end in ("low", "high"))
    axes.fill_between(ahead, lows, highs, color=VERMILLION, alpha=0.15, linewidth=0)
    axes.axvline(images, color=INK, linewidth=0.9, linestyle=":")
    bottom = axes.get_ylim()[0]
    axes.annotate(" all labels that there are", (images, bottom), (0, 6), textcoords="offset points", color=MUTED)
    axes.set_xscale("log")
    ticks = [int(size) for size in sizes[::2]] + [2 * images, FARTHEST * images]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], min_n_ticks=3))
    axes.set(xlabel="labeled training images", ylabel="accuracy on validation images")
    axes.legend(loc="upper left")
    return figure
