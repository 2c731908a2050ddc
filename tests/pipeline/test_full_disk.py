"""A full disk, for which a limit on the size of files stands in: one sentence, and nothing that is half there."""

import json
from pathlib import Path

import pytest
from full_disk import files_up_to
from workplace import TINY, Workplace

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
