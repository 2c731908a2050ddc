"""What runs on a Ray cluster are at is shown where the command was typed, a line for each."""

import _thread
import io
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from graftline.console import WorkReport, console, counted, report_work, reported, say
from graftline.ray_board import Reporter, shown
from graftline.ray_cluster import RayCluster


def test_what_is_counted_is_reported() -> None:
    heard = list[WorkReport]()
    with reported(heard.append), counted("Looking at images", 3) as advance:
        advance(2)
        with reported(lambda _: None):
            report_work(WorkReport("in a run of its own", 1, 1))
        advance(1)
    report_work(WorkReport("later", 1, 1))
    assert heard == [WorkReport("Looking at images", done, 3) for done in (0, 2, 3)]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    file = io.StringIO()
    monkeypatch.setattr(console, "_file", file)
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "is_interactive", True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return file


@pytest.fixture
def _alone() -> Iterator[None]:
    """This process is connected with no cluster before and after."""
    ray = pytest.importorskip("ray", reason="ray is missing: make test-extras installs it")
    ray.shutdown()
    yield
    ray.shutdown()


@pytest.mark.extras
@pytest.mark.usefixtures("_alone")
@pytest.mark.timeout(300)
def test_each_run_has_a_line(terminal: io.StringIO) -> None:
    cluster = RayCluster(num_workers=2)
    slots = cluster.slots()

    def train(number: int, reporter: Reporter) -> int:
        with reporter.telling():
            if number == 2:  # as one that fails at once
                return number
            report_work(WorkReport("training", 3, 7, f"best val accuracy 0.{number}"))
            report_work(WorkReport("Classifying the [test] images", number, 9))
            time.sleep(3)
        return number

    with shown("Runs", ["Run 0", "Run 1", "Run 2"]) as board:
        tasks = ((number, board.reporter(number)) for number in range(3))
        for number, get in cluster.as_completed(train, tasks, slots=slots):
            assert get() == number
            board.end(number)
            say(f"Run {number}: done.")
    assert [task.description for task in board._bar.tasks if task.visible] == ["Runs"]
    told = terminal.getvalue()
    for number in range(3):
        assert 0 < told.find(f"Run {number}: begins on node ") < told.find(f"Run {number}: done.")
    for number in (0, 1):
        assert f"Run {number}, Classifying the [test] images, best val accuracy 0.{number}" in told, "it stays"
        assert f" {number}/9" in told
    assert " 3/3" in told


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise as usual: shells have it ignored in what they start in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.extras
@pytest.mark.usefixtures("_alone", "_interruptible")
@pytest.mark.timeout(300)
def test_a_run_that_is_stopped_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks Ray to cancel it, which aborts the command where the run ends in the same moment."""
    cluster = RayCluster(num_workers=1)

    def train(folder: str, reporter: Reporter) -> None:
        try:
            with reporter.telling():
                Path(folder, "begun").touch()
                for _ in range(600):
                    time.sleep(0.1)
        except KeyboardInterrupt:
            Path(folder, "stopped").touch()

    slots = cluster.slots()
    monkeypatch.setattr("ray.cancel", lambda *_, **__: pytest.fail("it is asked to stop"))
    with shown("Runs", ["Run 0"]) as board:
        ended = cluster.as_completed(train, [(str(tmp_path), board.reporter(0))], slots=slots, stop=board.stop)

        def interrupt() -> None:
            while not (tmp_path / "begun").exists():
                time.sleep(0.05)
            _thread.interrupt_main()

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt), closing(ended):
            next(ended)
    assert (tmp_path / "stopped").exists()
