"""The picture of a learning curve: each point is measured, and the title says what twice the labels bring."""

import numpy as np

from graftline.evaluation.learning_curve import LearningCurve, subset_sizes
from graftline.report.learning_curve_figure import gain_in_words, learning_curve_figure
from graftline.report.style import png


def test_it_shows_the_points_and_the_gain() -> None:
    sizes = subset_sizes(1600, 2)
    limits = 2 * sizes**-0.5
    wrong = (np.random.default_rng(0).random((4, 1, 300)) < limits[None, :, None]).astype(np.float32)
    curve = LearningCurve(sizes, wrong, resamples=100)
    figure = learning_curve_figure(curve, "made up")
    (axes,) = figure.axes
    (points,) = [line for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.asarray(points.get_xydata(), np.float64), np.column_stack([sizes, 1 - curve.errors]))
    assert figure.texts[0].get_text() == f"Twice the labels: {gain_in_words(curve, 2)} of accuracy"
    gain = curve.gain(2)
    assert gain_in_words(curve, 2).startswith(f"{100 * gain.value:+.1f} [{100 * gain.low:.1f}, ")
    assert png(figure).startswith(b"\x89PNG")
