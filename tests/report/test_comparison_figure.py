"""The forest plot: a row for each model, with its interval and its verdict in words."""

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Annotation

from benchmarks.comparison import classifiers
from graftline.evaluation.comparison import Comparison, Metric, compare, format_difference
from graftline.report.comparison_figure import comparison_figure
from graftline.report.style import png
from graftline.report.tables import print_comparison


def comparison(metric: Metric = "accuracy", models: int = 3) -> Comparison:
    made = classifiers([1.5, 1.5, 2.6, 0.5][:models], np.random.default_rng(1), images=300)
    return compare(dict(zip(["one $1", "alike", "good", "bad"], made, strict=False)), metric, resamples=100)


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_each_row_has_its_interval_and_its_verdict(metric: Metric) -> None:
    found = comparison(metric, 4)
    figure = comparison_figure(found)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["alike", "good", "bad"]
    bars = [one for one in axes.containers if isinstance(one, ErrorbarContainer)]
    scale = 100 if metric == "accuracy" else 1
    texts = [text.get_text() for text in axes.texts if isinstance(text, Annotation)]
    for number, (bar, row, text) in enumerate(zip(bars, found.rows, texts, strict=True)):
        low, high = bar.lines[2][0].get_segments()[0][:, 0]
        difference = row.differences[metric]
        assert [low, high] == pytest.approx([scale * difference.low, scale * difference.high])
        assert bar.lines[2][0].get_segments()[0][0, 1] == number
        assert text == f"{format_difference(metric, difference)}   {row.verdict}"
    assert [row.verdict for row in found.rows] == ["no difference shown", "better", "worse"]
    assert any("1 better, 1 worse, 1 not told apart" in text.get_text() for text in figure.texts)
    assert png(figure).startswith(b"\x89PNG")


def test_two_models_are_a_sentence() -> None:
    texts = [text.get_text() for text in comparison_figure(comparison(models=2)).texts]
    assert texts[0] == "No difference shown: alike"


def test_the_table_says_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(comparison())
    printed = capsys.readouterr().out
    assert "reference" in printed
    assert "better" in printed
    assert "300 images show differences in accuracy of" in " ".join(printed.split())
    print_comparison(comparison("log_loss", 2))
    assert "show differences" not in capsys.readouterr().out


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_a_terminal_of_80_columns_shows_names_as_they_are(metric: Metric, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["tf_efficientnet_lite0 head 64px seed0", "lenet5 all 32px seed0", "mobilenetv3_large_100 head 96px seed1"]
    made = classifiers([1.5, 1.5, 2.6], np.random.default_rng(1), images=300)
    print_comparison(compare(dict(zip(names, made, strict=True)), metric, resamples=100))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == ["Models", *(f"{number}  {name}" for number, name in enumerate(names, start=1))]
    assert max(map(len, lines[4:9])) <= 80
    assert [line[:2] for line in lines[5:9]] == ["  ", "1 ", "2 ", "3 "]
    assert lines[8].endswith("better")
