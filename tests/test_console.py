"""What is printed reaches the log file as it is printed, and a bar only the terminal."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from graftline.console import console, logged, print_facts, print_table, progress, say, warn


def test_a_bar_is_for_the_terminal_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of its frames is kept in memory or written to the log, of which a killed process leaves what it has said."""
    terminal, file = io.StringIO(), tmp_path / "log.txt"
    monkeypatch.setattr(console, "_file", terminal)
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "is_interactive", True)
    monkeypatch.setenv("TERM", "xterm")
    with logged(file):
        say("[red] pets")
        with progress("Counting", total=20) as bar:
            for _ in range(20):
                bar.advance(bar.task_ids[0])
                bar.refresh()
            warn("odd")
            assert file.read_text() == "[red] pets\n! odd\n"
        print_table("pets", ("images", "train"), [("cats", "1,081")])
        print_facts("done", [("bundle", "a/b")])
    assert "20/20" in terminal.getvalue()
    lines = [line.rstrip() for line in file.read_text().splitlines()]
    assert lines[2:] == ["pets", "images  train", "cats    1,081", "done", "bundle  a/b"]
    assert not console.record


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_terminal_without_room_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the log of cron or systemd on a full disk."""
    file = tmp_path / "log.txt"
    with Path("/dev/full").open("wb", buffering=0) as device, logged(file):
        monkeypatch.setattr(console, "_file", io.TextIOWrapper(device, write_through=True))
        say("pets")
        warn("odd")
    assert file.read_text() == "pets\n! odd\n"
    with monkeypatch.context() as other:
        other.setattr(console, "_file", terminal := io.StringIO())
        say("cats")
        assert terminal.getvalue() == "cats\n"


def test_a_pipe_that_nobody_reads_ends_the_process() -> None:
    code = "from graftline.console import say\nwhile True: say('pets')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1


def test_text_that_begins_with_a_digit_leaves_room_for_the_other_columns() -> None:
    nearest = ["2 capital letters W of the Latin alphabet, upright, 1 capital letter N", "3 digits"]
    rows = [("7.png", "N", "77.2 %", nearest[0]), ("8.png", "0", "60.0 %", nearest[1])]
    with console.capture() as printed:
        print_table("mistakes", ("image", "answer", "probability", "nearest"), rows)
    lines = printed.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["image", "answer", "probability", "nearest"]
    assert lines[2].split()[:3] == ["7.png", "N", "77.2"]
    assert set(nearest[0].split()) < set(printed.get().split()), "nothing is cut off"
