"""A batch job tells a log how far it is."""

from types import SimpleNamespace

import pytest

from graftline.pipeline import predict


def test_a_log_is_told_the_pace_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once a minute, and not at the end."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(predict, "time", SimpleNamespace(monotonic=lambda: clock.now))
    told = []
    with predict._pace(10_000) as go_on:
        capsys.readouterr()  # what is counted
        for seconds, count in ((40, 500), (24, 780), (60, 7680), (60, 1040)):
            clock.now += seconds
            go_on(count)
            told.append(capsys.readouterr().out.strip())
    assert told == [
        "",
        "1,280 of 10,000 images, 20 a second, 0:07:16 left",  # 8,720 of them at 20 a second
        "8,960 of 10,000 images, 72 a second, 0:00:14 left",
        "",
    ]
