"""A full disk, for which a limit on the size of files stands in: one sentence, and nothing that is half there."""

import io
import json
import os
from pathlib import Path

import pytest
from full_disk import files_up_to
from workplace import TINY, Workplace

from graftline.console import console
from graftline.errors import no_room
from graftline.pipeline.__main__ import main


@pytest.mark.parametrize(
    ("size", "file"),
    [
        (2_000, "config.yaml"),
        (100_000, "The tracking database"),
        (2_000_000, "checkpoints"),  # the database has half of that
    ],
)
def test_a_training_on_a_full_disk(
    size: int,
    file: str,
    workplace: Workplace,
    color_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workplace.root)
    typed = ["train", "data=folder", f"data.path={color_folder}", *TINY, "backbone=test_resnet", "trainer.max_epochs=1"]
    with files_up_to(size):
        assert main([*typed, "tracking.register=false"]) == 1
    output = capsys.readouterr().out
    last = output.strip().splitlines()[-1]
    assert file in last.partition(" cannot be written (")[0]
    assert "make room on the disk" in last
    assert "raceback" not in output
    assert not list(workplace.root.rglob("*.tmp*"))
    experiments = [experiment.experiment_id for experiment in workplace.mlflow.search_experiments()]
    statuses = {run.info.status for run in workplace.mlflow.search_runs(experiments)}
    assert statuses <= {"FAILED"}
    if file == "checkpoints":
        assert statuses == {"FAILED"}
        assert main([*typed, "tracking.register=false"]) == 0, "afterwards the same command does its work"


@pytest.mark.long
def test_a_retraining_on_a_full_disk(
    workplace: Workplace, color_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace.root)
    data = ["data=folder", f"data.path={color_folder}", "data.name=colors"]
    typed = ["retrain", *data, *TINY, "backbone=test_resnet", "trainer.max_epochs=1"]
    with files_up_to(2_000_000):  # too little for its checkpoints
        assert main(typed) == 1
    output = capsys.readouterr().out
    assert "make room on the disk" in output.strip().splitlines()[-1]
    assert "raceback" not in output
    (file,) = workplace.root.glob("outputs/retrain/*/result.json")
    assert json.loads(file.read_text())["outcome"] == "failed"
    assert [one.name for one in workplace.mlflow.search_registered_models()] == [], "no version, no lease"
    assert main(typed) == 0
    assert "Going on with run" in capsys.readouterr().out
    assert [one.name for one in workplace.mlflow.search_registered_models()] == ["colors"]


@pytest.mark.parametrize(("size", "outputs"), [(0, "a folder"), (100_000, "a file")])
def test_a_retraining_that_cannot_begin_tells_it(
    size: int, outputs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its terminal is a file on the disk that is full, as the log of cron and systemd."""
    monkeypatch.chdir(tmp_path)
    if outputs == "a file":
        Path("outputs").touch()  # no output directory can be made
    os.mkfifo("told")
    reader = os.open("told", os.O_RDWR | os.O_NONBLOCK)  # which has no limit on its size
    typed = ["retrain", "data=folder", "data.path=photos", "notify.command='cat > told'"]
    with Path("/dev/full").open("wb", buffering=0) as device, files_up_to(size):
        monkeypatch.setattr(console, "_file", io.TextIOWrapper(device, write_through=True))
        assert main(typed) == 1
    told = json.loads(os.read(reader, 65_536))
    os.close(reader)
    assert told["outcome"] == "failed"
    assert ("is no folder: move it away" if outputs == "a file" else "config.yaml cannot be written (") in told[
        "reason"
    ]
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("PytorchStreamWriter failed writing file: No space left on device"), "A file cannot be written"),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), "The tracking database cannot be"),
        (RuntimeError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"), "Disk quota exceeded"),
        (FileNotFoundError(2, "No such file or directory", "x"), None),
    ],
)
def test_libraries_tell_it_in_words_of_their_own(error: Exception, told: str | None) -> None:
    outer = ValueError("something else")
    outer.__cause__ = error
    sentence = no_room(outer)
    assert sentence is None if told is None else told in str(sentence)
