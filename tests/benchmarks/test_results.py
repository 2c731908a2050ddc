"""Results of the accuracy benchmark: kept, compared on the same images, shown."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from benchmarks.accuracy.__main__ import plan
from benchmarks.accuracy.comparison import compare
from benchmarks.accuracy.intervals import paired, wilson
from benchmarks.accuracy.picture import draw_picture
from benchmarks.accuracy.results import Result, Run, add, correct_file, read
from benchmarks.accuracy.table import markdown

NUM_IMAGES = 400


def put(folder: Path, run: Run, accuracy: float, seconds: float) -> None:
    """Keep a result whose first images are right."""
    correct = np.arange(NUM_IMAGES) < accuracy * NUM_IMAGES
    file = correct_file(folder, run)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, correct)
    add(folder, Result(run, seconds + 20, seconds, float(correct.mean()), NUM_IMAGES, {"epochs": 3}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for image_set in ("letters", "digits"):
        put(tmp_path, Run(image_set, "graftline", None), 0.90, 50)
        for minutes, bonus in ((1, 0.0), (5, 0.02)):
            put(tmp_path, Run(image_set, "plain", minutes), 0.80 + bonus, minutes * 60)
            put(tmp_path, Run(image_set, "fastai", minutes), 0.90, minutes * 58)
    put(tmp_path, Run("digits", "graftline-search", 5), 0.70, 290)
    return tmp_path


def test_what_is_there_is_not_run_again(folder: Path) -> None:
    runs = plan(["letters", "digits"], ["graftline", "plain", "timm"], [5, 1], [0])
    assert len(runs) == 2 * (1 + 2 + 2)
    assert runs[0].minutes in (1, None)
    assert {run.peer for run in runs if run not in read(folder)} == {"timm"}


def test_a_later_result_replaces_an_earlier_one(folder: Path) -> None:
    run = Run("letters", "plain", 1)
    put(folder, run, 0.5, 61)
    assert read(folder)[run].accuracy == 0.5


def test_wilson_is_that_of_scipy() -> None:
    for right, count in ((0, 10), (450, 450), (613, 656)):
        expected = binomtest(right, count).proportion_ci(0.95, "wilson")
        assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_paired_interval_is_that_of_agresti_and_min() -> None:
    """Counts of a 2 x 2 table: 30 images only the one has right, 12 only the other, 300 both, 58 none."""
    one = np.repeat([1.0, 0.0, 1.0, 0.0], [30, 12, 300, 58])
    other = np.repeat([0.0, 1.0, 1.0, 0.0], [30, 12, 300, 58])
    b, c, n = 30.5, 12.5, 402
    half = 1.959964 * np.sqrt(b + c - (b - c) ** 2 / n) / n
    assert paired(one, other) == pytest.approx((18 / 400, (b - c) / n - half, (b - c) / n + half))
    assert paired(one, one)[1] < 0 < paired(one, one)[2]


def test_each_peer_is_compared_with_what_a_user_would_have_typed(folder: Path) -> None:
    rows = {(row.image_set, row.minutes, row.peer): row for row in compare(read(folder), folder)}
    ahead = rows["letters", 1, "plain"].ahead
    assert ahead is not None
    assert ahead[0] == pytest.approx(0.1)
    assert ahead[1] > 0
    behind = rows["digits", 5, "fastai"].ahead  # the search is worse than the default, and counts nonetheless
    assert behind is not None
    assert behind[0] == pytest.approx(-0.2)
    assert rows["letters", 1, "graftline"].ahead is None


def test_a_default_that_takes_longer_than_the_budget_is_not_compared(folder: Path) -> None:
    put(folder, Run("letters", "graftline", None), 0.95, 200)
    rows = {(row.image_set, row.minutes, row.peer): row.ahead for row in compare(read(folder), folder)}
    assert rows["letters", 1, "plain"] is None
    assert rows["letters", 5, "plain"] is not None


def test_the_table_counts_and_the_picture_is_drawn(folder: Path) -> None:
    text = markdown(read(folder), folder)
    assert "Of 8 comparisons with a peer, graftline is above in 3, below in 2, and in 3" in text
    assert "| letters | 1 | plain loop | 80.0% (75.8% to 83.6%) | 60 | +10.0 (" in text
    draw_picture(read(folder), folder / "accuracy.png")
    assert Image.open(folder / "accuracy.png").width > 500
