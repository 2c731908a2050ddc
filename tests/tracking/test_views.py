"""The ready-made views of an experiment: its tags, and the links that name them."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient

from graftline.errors import UserError
from graftline.pipeline.program import FROM_MAKE
from graftline.pipeline.ui import choose, main, show_links
from graftline.tracking.tracking import Tracking
from graftline.tracking.views import METRICS, PARAMETERS, missing_tags, view_links, view_tags


def test_an_experiment_has_the_views_that_links_name(
    tracking: Tracking,
    client: MlflowClient,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tracking.start(run_name="first", experiment="pets", directory=directory, tags={}):
        pass
    experiment = client.get_experiment_by_name("pets")
    assert experiment is not None
    assert missing_tags(experiment.tags) == {}
    started = list[Sequence[str]]()
    monkeypatch.setattr(os, "execve", lambda _program, command, _environment: started.append(command))
    monkeypatch.setattr(sys, "argv", ["ui", FROM_MAKE])
    monkeypatch.setenv("MAKEFLAGS", f"s -- tracking.uri={tracking.uri} port=5050")
    main()
    (command,) = started
    assert command[command.index("--backend-store-uri") + 1] == tracking.uri
    assert command[command.index("--port") + 1] == "5050"
    printed = capsys.readouterr().out
    for name, link in view_links("http://127.0.0.1:5050", experiment.experiment_id).items():
        assert f"pets, {name}: {link}\n" in printed
        key = link.partition("viewStateShareKey=")[2].partition("&")[0]
        view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
        assert view["orderByKey"] == "metrics.`test/accuracy`"
        assert not view["orderByAsc"]
        assert view["columnOrder"][1:] == view["selectedColumns"]
    assert "Default" not in printed, "an experiment without runs"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("prot=5050", r"make ui takes port=5050 and tracking\.uri=sqlite:///FILE, not prot=5050"),
        ("port=x", "port is x, it must be a number"),
        ("tracking.uri=http://mlflow:5000", "make ui shows a database such as .*: open a server's own address"),
    ],
)
def test_what_the_user_interface_does_not_take_is_refused(typed: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose([typed])


def test_views_of_an_earlier_version_are_renewed(tracking: Tracking, client: MlflowClient, directory: Path) -> None:
    with tracking.start(run_name="first", experiment="pets", directory=directory, tags={}):
        pass
    experiment_id = client.get_experiment_by_name("pets").experiment_id  # type: ignore[union-attr]
    key = next(iter(view_tags()))
    client.set_experiment_tag(experiment_id, key, "of before")
    show_links(tracking, "http://127.0.0.1:5000")
    assert client.get_experiment(experiment_id).tags[key] == view_tags()[key]


def test_there_are_no_links_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    show_links(Tracking(), "http://127.0.0.1:5000")
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_a_database_that_is_not_there_is_refused_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _, tracking = choose(["tracking.uri=sqlite:///~/none.db"])
    with pytest.raises(UserError, match=rf"There is no tracking database sqlite:///{tmp_path}/none\.db: correct"):
        show_links(tracking, "http://127.0.0.1:5000")
    assert not list(tmp_path.iterdir())


def test_a_run_gets_another_name_and_a_description(tracking: Tracking, client: MlflowClient, directory: Path) -> None:
    with tracking.start(run_name="first", experiment="pets", directory=directory, tags={}) as run:
        run.rename("resnet18 head 224px seed0")
        run.describe("**90 %** right")
    logged = client.get_run(run.id)
    assert logged.info.run_name == "resnet18 head 224px seed0"
    assert logged.data.tags["mlflow.note.content"] == "**90 %** right"
    assert client.search_runs([logged.info.experiment_id], "attributes.run_name = 'resnet18 head 224px seed0'")


def test_the_columns_are_what_a_training_logs() -> None:
    """tests/pipeline/test_compare.py looks whether a training logs them."""
    assert "validation/log_loss" in METRICS
    assert "network" in PARAMETERS
