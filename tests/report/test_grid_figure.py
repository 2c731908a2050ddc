"""Tables and picture of members x crops: what they say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from graftline.augment.crops import CROP_SETS
from graftline.augment.preprocess import Preprocessing
from graftline.evaluation.grid import GridRow, compare
from graftline.report.crops_figure import boxes, crops_figure
from graftline.report.grid_figure import grid_figure
from graftline.report.grid_tables import print_grid, print_members, sentence, write_grid_table


@pytest.fixture
def rows() -> list[GridRow]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200)
    logits = generator.normal(0, 1, (3, 2, 200, 2)).astype(np.float32)
    logits[:, :, np.arange(200), labels] += 1
    logits[:, 1, np.arange(200), labels] += 1  # ten crops help
    return compare(logits, labels, ["1", "10"], np.array([[3.0, 31.0]] * 3), resamples=100)


def test_the_sentence_says_gain_and_price(rows: list[GridRow]) -> None:
    gain = rows[-1].accuracy_gain
    expected = f"{100 * gain.value:+.1f} [{100 * gain.low:.1f}, {100 * gain.high:.1f}] points for 31x the time"
    test = rows[-1].test
    assert test is not None
    assert test.verdict == "better"
    verdict = f"better (p {'< 0.001' if test.corrected_p_value < 0.001 else f'= {test.corrected_p_value:.3f}'})"
    assert sentence(rows[-1], rows[0]) == f"3 members x 10 crops: {expected}, {verdict}."
    assert sentence(rows[0], rows[0]).endswith(" % at 3.0 ms.")


def test_the_table_has_all_rows_and_marks_the_frontier(
    rows: list[GridRow], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    print_members(["resnet18 224 px", "[red] 64 px", "c"], ["runs:/a", "b", "c"])
    print_grid(rows, "pets: test split")
    told = capsys.readouterr().out
    assert "[red] 64 px" in told
    lines = told.splitlines()
    assert max(map(len, lines)) <= 100
    verdicts = [row.test.verdict for row in rows[1:] if row.test is not None]
    assert set(verdicts) == {"better", "no difference shown"}
    printed = [line for line in lines if "[" in line and "red" not in line]
    assert ["  +  " in line for line in printed] == [False, *(one == "better" for one in verdicts)]
    assert lines[-1].startswith("+ better, - worse than the first row; ")
    table = pd.read_csv(write_grid_table(rows, tmp_path / "grid.csv"))
    assert len(table) == len(rows) == 10
    assert table["members"].tolist()[-1] == "1-3"
    assert table["verdict"].tolist()[1:] == verdicts
    assert table["accuracy_gain"].tolist() == pytest.approx([row.accuracy_gain.value for row in rows])


def test_the_picture_joins_the_frontier_and_names_its_crops(rows: list[GridRow]) -> None:
    figure = grid_figure(rows, 200)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    best = sorted((row for row in rows if row.is_on_frontier), key=lambda row: row.milliseconds)
    assert [text.get_text() for text in axes.texts] == [row.crops for row in rows]
    drawn = [np.asarray(line.get_ydata()).tolist() for line in axes.lines]
    assert [row.accuracy.value for row in best] in drawn
    assert axes.get_xscale() == "log"
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["1 member", "2 members", "3 members"]


def test_boxes_are_where_the_crops_were_cut() -> None:
    own = Preprocessing(image_size=(224, 224), mean=(0.5,), std=(0.5,), channels=1)
    image = np.zeros((256, 256, 3), dtype=np.uint8)
    edge = 223 / 255
    corners = [(x, y, x + edge, y + edge) for y in (0, 32 / 255) for x in (0, 32 / 255)]
    middle = 16 / 255
    expected = [(middle, middle, middle + edge, middle + edge), *corners]
    np.testing.assert_allclose(boxes(image, own, "5"), expected, atol=1e-9)
    np.testing.assert_allclose(boxes(image, own, "10"), expected, atol=1e-9)
    figure = crops_figure(image, own, ["1", "5", "144"])
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == ["1 crop", "5 crops", "144 crops"]
    below = [" ".join(axes.get_xlabel().split()) for axes in figure.axes]
    assert "harm" not in below[0]
    for told, name in zip(below[1:], ("5", "144"), strict=True):
        assert told.endswith(f"{name} passes; harm {CROP_SETS[name].wrong}")
    alone = crops_figure(image, own, ["1", "10"])
    alone.draw_without_rendering()
    assert all(text.get_window_extent().x1 <= alone.bbox.x1 for text in alone.texts), "no line is cut off"
    assert [len(axes.patches) for axes in figure.axes[:2]] == [2, 6]


@pytest.mark.parametrize("names", [["1"], ["1", "d4"]])
def test_words_above_few_crops_are_not_cut_off(names: list[str]) -> None:
    own = Preprocessing(image_size=(64, 64), mean=(0.5,), std=(0.5,), channels=1)
    figure = crops_figure(np.zeros((64, 64, 3), dtype=np.uint8), own, names)
    figure.draw_without_rendering()
    assert max(text.get_window_extent().x1 for text in figure.texts) < figure.bbox.x1
