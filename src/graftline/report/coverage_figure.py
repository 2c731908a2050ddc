"""The picture of what it brings to leave images that the model is unsure of to people."""

import numpy as np
from matplotlib.figure import Figure

from graftline.evaluation.coverage import accuracy_at, coverage_curve
from graftline.evaluation.predictions import Predictions
from graftline.report.style import BLUE, MUTED, PAPER, VERMILLION, new_figure, styled

MARKED = (0.5, 0.8, 0.9)  # shares of images that are answered
SIZE = (6.4, 5.2)  # inches
FEWEST_DRAWN = 10  # images; the share of fewer that is right jumps about


@styled()
def coverage_figure(predictions: Predictions) -> Figure:
    """Draw the accuracy on the images that the model is surest of against their share of all.

    Args:
        predictions: of N images.
    """
    coverage, accuracy = coverage_curve(predictions)
    marked = {share: accuracy_at(predictions, share) for share in MARKED}
    surest = marked[0.8]
    figure = new_figure(
        *SIZE,
        f"Of the surest 80 % of the images, {100 * surest.value:.1f} % are right",
        f"95 % interval {100 * surest.low:.1f} to {100 * surest.high:.1f} %. The others would be left to people.",
    )
    axes = figure.subplots()
    drawn = slice(min(FEWEST_DRAWN, len(coverage)) - 1, None)
    axes.plot(coverage[drawn], accuracy[drawn], color=BLUE, label="share of them that is right")
    axes.axhline(accuracy[-1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)), label="all images")
    shares, values = np.array(MARKED), list(marked.values())
    axes.vlines(shares, [one.low for one in values], [one.high for one in values], color=VERMILLION, linewidth=1.3)
    points = [one.value for one in values]
    axes.plot(shares, points, "o", color=VERMILLION, markersize=6, markeredgecolor=PAPER, label="95 % interval")
    lowest = min(accuracy[drawn].min(), min(one.low for one in values))
    axes.set(xlim=(0, 1.015), ylim=(max(0.0, lowest - 0.02), 1.01))
    axes.set(xlabel="share of the images that is answered, the surest first", ylabel="accuracy")
    axes.legend(loc="center left")
    return figure
