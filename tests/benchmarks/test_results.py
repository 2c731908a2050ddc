"""Results of the accuracy benchmark: kept, compared on the same images, shown."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from scipy.stats import binomtest

from benchmarks.accuracy import runners
from benchmarks.accuracy.__main__ import on_these_images, plan
from benchmarks.accuracy.comparison import compare
from benchmarks.accuracy.intervals import paired, wilson
from benchmarks.accuracy.peers.task import Task
from benchmarks.accuracy.picture import draw_picture
from benchmarks.accuracy.results import Failure, Origin, Result, Run, add, correct_file, read, read_failures
from benchmarks.accuracy.runners import Place, RunFailedError, is_current, origin
from benchmarks.accuracy.sets.folders import DIGEST
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


def test_a_peer_that_takes_longer_than_the_budget_is_not_compared_either(folder: Path) -> None:
    put(folder, Run("letters", "plain", 1), 0.80, 67)
    rows = {(row.image_set, row.minutes, row.peer): row for row in compare(read(folder), folder)}
    assert rows["letters", 1, "plain"].ahead is None
    text = markdown(read(folder), folder)
    assert "| letters | 1 | plain loop | 80.0% (75.8% to 83.6%) | 67 | took too long |" in text
    assert "more than 1.1 times the minutes is not compared (1 of " in text


def test_a_failed_run_is_kept_named_and_done_again(folder: Path) -> None:
    run = Run("letters", "plain", 1)
    add(folder, Failure(run, "ended with 1", Origin("abc")))
    assert run not in read(folder)
    assert read_failures(folder)[run].message == "ended with 1"
    assert "Without a result, as they failed: letters-plain-1min-0." in markdown(read(folder), folder)
    put(folder, run, 0.8, 60)
    assert run in read(folder)
    assert not read_failures(folder)


def test_a_process_that_hangs_is_stopped_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "_PATIENCE_S", 1)
    with pytest.raises(RunFailedError, match="was stopped after 1 s"):
        runners._start(["sh", "-c", "sleep 600 & echo $! > child; wait"], Run("letters", "graftline", None), tmp_path)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_only_results_of_the_same_images_cores_and_code_stand(tmp_path: Path) -> None:
    place = Place(tmp_path / "sets", tmp_path / "weights", tmp_path)
    (place.sets / "letters").mkdir(parents=True)
    (place.sets / "letters" / DIGEST).write_text("abc\n")
    ours, theirs = Run("letters", "graftline", None), Run("letters", "plain", 1)
    now, now_of_theirs = origin(ours, place), origin(theirs, place)
    assert now.set_digest == now_of_theirs.set_digest == "abc"
    assert now.code != now_of_theirs.code
    for run, made, stands in (
        (ours, now, True),
        (theirs, now_of_theirs, True),
        (ours, replace(now, commit="of a later day"), True),
        (ours, replace(now, code="of another day"), False),
        (theirs, replace(now_of_theirs, cores=now.cores + 1), False),
        (theirs, replace(now_of_theirs, set_digest="def"), False),
        (theirs, Origin(), False),
    ):
        result = Result(run, 70, 60, 0.8, NUM_IMAGES, origin=made)
        assert is_current(result, place) == stands
        assert bool(on_these_images({run: result}, place)) == (made.set_digest == "abc")


def test_a_peer_without_time_left_trains_one_small_epoch(tmp_path: Path) -> None:
    for number in range(300):
        file = tmp_path / "train" / "a" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    task = Task(tmp_path, tmp_path, tmp_path / "out.npy", seconds=0.001, seed=0)
    assert task.left == 0
    assert task.fit_into(task.left, 0.01) == (1, 100)
    assert task.fit_into(2, 0.01) == (1, 200)
    assert task.fit_into(7, 0.01) == (2, 300)


def test_the_table_counts_and_the_picture_is_drawn(folder: Path) -> None:
    text = markdown(read(folder), folder)
    assert "Of 8 comparisons with a peer, graftline is above in 3, below in 2, and in 3" in text
    assert "| letters | 1 | plain loop | 80.0% (75.8% to 83.6%) | 60 | +10.0 (" in text
    draw_picture(read(folder), folder / "accuracy.png")
    assert Image.open(folder / "accuracy.png").width > 500
