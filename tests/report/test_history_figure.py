"""The pictures of a promotion: the history with its bands, and the images that turn wrong."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from conftest import paint
from graftline.data.decoding import PLAIN
from graftline.evaluation.gate_guards import Guard
from graftline.report.flips_figure import MOST, flips_figure
from graftline.report.gate_tables import gate_markdown, print_gate
from graftline.report.history_figure import MOST_ROWS, history_figure
from graftline.report.history_tables import print_history
from graftline.report.style import png
from graftline.tracking.ledger import Author, ChampionDecision, Kind, LedgerLine


def chain(*steps: tuple[Kind, int | None, int | None]) -> list[LedgerLine]:
    lines: list[LedgerLine] = []
    for number, (kind, version, after) in enumerate(steps):
        before = lines[-1].decision.after if lines else None
        at = f"2026-01-{1 + number % 28:02}T03:00:00+00:00"
        reasons = ("The accuracy is surely worse: 3.1 to 9.9 points are lost.",) if kind == "refused" else ()
        made = ChampionDecision("pets", kind, version, before, after, Author("me", "here"), at, before, reasons)
        lines.append(LedgerLine.after(lines[-1] if lines else None, made))
    return lines


def words(figure: Figure) -> str:
    axes = figure.axes[0]
    return " ".join(text.get_text() for text in [*figure.texts, *axes.texts, *axes.get_yticklabels()])


def bands(figure: Figure) -> list[tuple[float, float, float]]:
    """Return the lane of each band, and the rows where it begins and ends."""
    found = []
    for lines in figure.axes[0].collections:
        if isinstance(lines, LineCollection) and np.isclose(lines.get_linewidth(), 7).all():
            (segment,) = lines.get_segments()
            found.append((float(segment[0][0]), float(segment[0][1]), float(segment[1][1])))
    return found


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nine hours later than UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


STORY: tuple[tuple[Kind, int | None, int | None], ...] = (
    ("promoted", 1, 1),
    ("refused", 2, 1),
    ("promoted", 3, 3),
    ("rolled back", 1, 1),
    ("moved by hand", None, None),
    ("forced", 3, 3),
)


@pytest.mark.usefixtures("tokyo")
def test_a_band_where_a_version_was_champion() -> None:
    figure = history_figure("pets", chain(*STORY))
    told = words(figure)
    assert "pets: version 3 is champion" in told
    for word in ("promoted 1", "refused 2", "rolled back 1", "moved by hand", "forced 3", "2026-01-01 12:00   1"):
        assert word in told
    assert bands(figure) == [(0, 0, 2), (2, 2, 3), (0, 3, 4), (2, 5, 5.5)]
    assert png(figure).startswith(b"\x89PNG")


def test_of_a_long_history_the_end_is_shown() -> None:
    steps = [("promoted", number, number) for number in range(1, 100)]
    figure = history_figure("pets", chain(*steps))  # type: ignore[arg-type]
    assert f"99 decisions, of which the last {MOST_ROWS}" in words(figure)
    assert len(bands(figure)) == MOST_ROWS + 1, "and the champion before"
    assert "no champion" in words(history_figure("pets", chain(("refused", 1, None))))


def test_the_history_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_history("pets", chain(*STORY))
    told = capsys.readouterr().out
    assert "Champions of pets" in told
    assert "2.0 days" in told
    assert "refused 2, by me@here" in told


def test_images_that_turn_wrong(tmp_path: Path) -> None:
    paths = []
    for number in range(20):
        paint((200, 30, 30), number).save(file := tmp_path / f"{number}.png")
        paths.append(str(file))
    flips = pd.DataFrame({"path": paths, "label": "red", "champion": "red", "challenger": "blue", "probability": 0.9})
    figure = flips_figure(flips, 100, "version 2 against version 1", PLAIN)
    assert sum(bool(axes.images) for axes in figure.axes) == MOST
    assert "20 images turn from right to wrong" in " ".join(text.get_text() for text in figure.texts)
    assert "blue 90 %" in figure.axes[0].get_title()
    one = flips_figure(flips.head(1), 100, "", PLAIN)
    assert "1 image turns from right to wrong" in one.texts[0].get_text()


def test_the_table_of_a_gate(capsys: pytest.CaptureFixture[str]) -> None:
    guards = [
        Guard("log loss", "0.310", "0.295", "-0.015 [-0.030, +0.001]", passed=True),
        Guard(
            "class cat", "90.0 %", "70.0 %", "-20.0 [-30.0, -10.0]", passed=False, reason="Worse.", label="class a|b"
        ),
        Guard("class dog", "", "", "", passed=True, told=False),
    ]
    print_gate(guards, "pets: version 2 against version 1")
    told = capsys.readouterr().out
    assert "FAILS" in told
    assert "dog" not in told
    assert gate_markdown(guards).splitlines()[3] == ("| class a\\|b | 90.0 % | 70.0 % | -20.0 [-30.0, -10.0] | FAILS |")
