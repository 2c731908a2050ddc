"""The picture of what was measured at each depth: that it shows the numbers, and marks the boundary that was chosen."""

from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.text import Annotation

from graftline.freezing.measurement import BoundaryResult, DepthMeasurement, Difference
from graftline.report.depth_figure import depth_figure
from graftline.report.style import png

BOUNDARIES = ("head", "blocks.6 + conv_head + bn2", "blocks.5", "blocks.4 with an endless name")
LOSSES, ACCURACIES = (0.42, 0.36, 0.37, 0.40), (0.84, 0.87, 0.86, 0.85)


def measurement(chosen: int, tried: int = 4) -> DepthMeasurement:
    rows = tuple(
        BoundaryResult(
            BOUNDARIES[number],
            frozen_groups=7 - number,
            trained_parameters=2562 * 40**number,
            log_loss=LOSSES[number],
            accuracy=ACCURACIES[number],
            more_log_loss=_difference(LOSSES, number, chosen),
            more_accuracy=_difference(ACCURACIES, number, chosen),
            cached=number < 3,
            pass_seconds=20.0 if number < 3 else 0.2,
            fit_seconds=3.0 * (1 + number),
        )
        for number in range(tried)
    )
    return DepthMeasurement(rows, chosen, 394, "the best of each round went on")


def _difference(values: Sequence[float], number: int, chosen: int) -> Difference:
    value, half = values[number] - values[chosen], 0.0 if number == chosen else 0.02
    return Difference(value, value - half, value + half)


def _points(axes: Axes) -> list[tuple[float, float, float, float]]:
    """Return the points of a panel: position, value, and the ends of the bar."""
    found = []
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (bars,) = container
        assert isinstance(bars, LineCollection)
        ((_, low), (_, high)) = bars.get_segments()[0]
        ((x, y),) = line.get_xydata()
        found.append((x, y, low, high))
    return found


def test_each_boundary_has_its_points_bars_and_seconds() -> None:
    figure = depth_figure(measurement(chosen=1))
    assert figure is not None
    losses, accuracies, seconds = figure.axes
    for axes, values in ((losses, LOSSES), (accuracies, ACCURACIES)):
        expected = [
            (number, value, value - (0.02 if number != 1 else 0), value + (0.02 if number != 1 else 0))
            for number, value in enumerate(values)
        ]
        np.testing.assert_allclose(_points(axes), expected)
    stacks = [[patch.get_height() for patch in bars] for bars in seconds.containers if isinstance(bars, BarContainer)]
    assert stacks == [[20.0, 20.0, 20.0, 0.2], [3.0, 6.0, 9.0, 12.0]]
    assert [text.get_text() for text in seconds.texts] == ["23 s", "26 s", "29 s", "12 s, live"]
    names = [label.get_text() for label in seconds.get_xticklabels()]
    assert names == ["head alone\n2.56 k", "+ blocks.6\n102 k", "+ blocks.5\n4.10 M", "+ blocks.4… name\n164 M"]


@pytest.mark.parametrize(
    ("chosen", "title"),
    [
        (0, "More than the head did not pay: 84.0 % right with the head alone"),
        (1, "Training from blocks.6 pays: 0.060 less log loss than the head alone"),
    ],
)
def test_the_chosen_boundary_is_marked_and_said(chosen: int, title: str) -> None:
    figure = depth_figure(measurement(chosen))
    assert figure is not None
    assert figure.texts[0].get_text() == title
    (mark,) = figure.axes[0].texts
    assert isinstance(mark, Annotation)
    assert (mark.get_text(), mark.xy[0]) == ("chosen", chosen)
    assert png(figure).startswith(b"\x89PNG")


def test_one_boundary_is_no_picture() -> None:
    assert depth_figure(measurement(chosen=0, tried=1)) is None
