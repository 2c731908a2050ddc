"""A further process of a distributed training, on a node that does not see what the others do."""

import socket
from pathlib import Path

import pytest

from graftline.console import console
from graftline.pipeline import worker
from graftline.pipeline.cli.errors import EXIT_MISTAKE


def test_an_output_directory_that_a_node_does_not_see_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "SECONDS_TO_SEE", 0)
    monkeypatch.setattr(console, "quiet", True)  # as in a further process; afterwards it is as it was
    assert worker._train_along(tmp_path / "away") == EXIT_MISTAKE
    told = f"{tmp_path}/away, the output directory of the run, is not to be seen on {socket.gethostname()}: all nodes "
    assert told in capsys.readouterr().out
