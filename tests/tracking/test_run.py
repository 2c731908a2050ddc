"""What a run logs arrives in MLflow, and how it ends is told."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlflow.data
import mlflow.utils.validation as limits
import pytest
from lasting_run import log_and_last
from mlflow import MlflowClient
from mlflow.entities import ViewType
from workplace import Workplace

from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.pipeline.training.run_log import LoggedEvents
from graftline.tracking import delivery, environment, models, names, parameters, system
from graftline.tracking.outbox import sync
from graftline.tracking.run import Run
from graftline.tracking.tracking import Tracking


def start(tracking: Tracking, directory: Path, resume_run_id: str | None = None, parent: str | None = None) -> Run:
    return replace(tracking, parent_run_id=parent).start(
        run_name="first",
        experiment="pets",
        directory=directory,
        tags={"stage": "train"},
        resume_run_id=resume_run_id,
    )


def history(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def test_all_that_a_run_logs_arrives(tracking: Tracking, client: MlflowClient, directory: Path) -> None:
    figure = directory / "figures" / "confusion.png"
    figure.parent.mkdir()
    figure.write_bytes(b"png")
    with start(tracking, directory) as run:
        run.log_params({"optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "seed": 0, "resume": None, "name": ""}, "seed: 0\n")
        for step in range(1500):  # more than one request takes
            run.log_metrics({"train/loss": 1 / (step + 1)}, step)
        run.log_metrics({"odd": float("nan"), "infinite": math.inf}, 3)
        run.log_artifact(figure, "figures")
        run.log_artifact(figure.parent, "all")
    logged = client.get_run(run.id)
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name == "first"
    assert logged.data.params == {
        "optim.lr": "0.1",
        "optim.betas": "[0.9, 0.99]",
        "seed": "0",
        "resume": "null",
        "name": "",
    }
    assert history(client, run.id, "train/loss") == [(step, 1 / (step + 1)) for step in range(1500)]
    assert math.isnan(history(client, run.id, "odd")[0][1])
    assert history(client, run.id, "infinite")[0][1] > 1e300  # a database holds no infinity
    assert logged.data.tags["stage"] == "train"
    artifacts = Path(tracking.uri.removeprefix("sqlite:///")).parent / "mlartifacts" / "pets" / run.id / "artifacts"
    found = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    assert found == {"config.yaml", "figures/confusion.png", "all/confusion.png"}
    assert (artifacts / "config.yaml").read_text() == "seed: 0\n"
    assert client.get_experiment(logged.info.experiment_id).name == "pets"


def test_the_limits_are_those_of_this_mlflow() -> None:
    assert parameters.MAX_LENGTH == limits.MAX_PARAM_VAL_LENGTH
    assert delivery.MAX_PARAMS_OR_TAGS == limits.MAX_PARAMS_TAGS_PER_BATCH
    assert models.MAX_METRICS == limits.MAX_METRICS_PER_BATCH
    assert names.MAX_KEY_LENGTH == limits.MAX_ENTITY_KEY_LENGTH


def test_much_at_once_and_long_values(tracking: Tracking, client: MlflowClient, directory: Path) -> None:
    config = {f"key{index}": "x" * 5999 for index in range(250)} | {"long": "ä" * 6001}
    metrics = {f"precision/class {index}": index / 2000 for index in range(2000)}
    with start(tracking, directory) as run:
        run.log_params(config, "long: " + "ä" * 6001)
        run.log_metrics(metrics, 0)
    logged = client.get_run(run.id).data
    assert logged.params == config | {"long": "(6,001 characters: see the artifact config.yaml)"}
    assert logged.metrics == metrics
    whole = client.download_artifacts(run.id, "config.yaml", str(directory))
    assert Path(whole).read_text(encoding="utf-8") == "long: " + "ä" * 6001


def test_class_names_may_hold_any_character(tracking: Tracking, client: MlflowClient, directory: Path) -> None:
    metrics = {
        "recall/C++": 0.1,
        "recall/C#": 0.2,
        "recall/schön": 0.3,
        "recall/../up": 0.4,
        "recall/": 0.5,
        "recall/" + "x" * 300: 0.6,
    }
    with start(tracking, directory) as run:
        run.log_metrics(metrics, 0)
    logged = client.get_run(run.id).data.metrics
    assert sorted(logged.values()) == sorted(metrics.values())
    assert logged["recall/schön"] == 0.3


def test_passwords_stay_at_home(tracking: Tracking, client: MlflowClient, directory: Path) -> None:
    uri = "postgresql://me:secret@host/db"
    with start(tracking, directory) as run:
        run.log_params({"tracking": {"uri": uri}}, f"tracking:\n  uri: {uri}\n")
    assert client.get_run(run.id).data.params == {"tracking.uri": "postgresql://me:***@host/db"}
    whole = client.download_artifacts(run.id, "config.yaml", str(directory))
    assert Path(whole).read_text() == "tracking:\n  uri: postgresql://me:***@host/db\n"


def _raise(error: BaseException) -> None:
    raise error


def _as_lightning_does() -> None:
    try:
        _raise(KeyboardInterrupt())
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize(
    ("leave", "status", "tag"),
    [
        (lambda: _raise(ValueError("no memory\nmore")), "FAILED", "ValueError: no memory"),
        (lambda: _raise(AssertionError()), "FAILED", "AssertionError"),
        (lambda: _raise(SystemExit(1)), "FAILED", "SystemExit: 1"),
        (lambda: _raise(SystemExit(0)), "FINISHED", None),
        (lambda: _raise(KeyboardInterrupt()), "KILLED", "KeyboardInterrupt"),
        (_as_lightning_does, "KILLED", "KeyboardInterrupt"),
    ],
)
def test_how_a_run_ends(
    tracking: Tracking,
    client: MlflowClient,
    directory: Path,
    leave: Callable[[], None],
    status: str,
    tag: str | None,
) -> None:
    with pytest.raises(BaseException), start(tracking, directory) as run:  # noqa: B017, PT011  # any, and it comes out
        leave()
    logged = client.get_run(run.id)
    assert logged.info.status == status
    assert logged.data.tags.get("graftline.error") == tag


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_the_run_killed(
    tracking: Tracking, client: MlflowClient, directory: Path, number: signal.Signals
) -> None:
    process = Workplace(directory).start_function(partial(log_and_last, tracking.uri, directory, 60))
    while not (run_id := process.output.strip()):
        assert process.code is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) != 0
    if number == signal.SIGKILL:  # the process could do nothing; its output directory can
        assert client.get_run(run_id).info.status == "RUNNING"
        assert sync(directory).problem is None
    else:
        assert "KeyboardInterrupt" in process.output or "Terminated" in process.output
    assert client.get_run(run_id).info.status == "KILLED"
    assert history(client, run_id, "loss") == [(step, step / 2) for step in range(100)]


def test_the_dataset_is_an_input(
    tracking: Tracking, client: MlflowClient, directory: Path, version: DatasetVersion
) -> None:
    with start(tracking, directory) as run:
        run.log_dataset(version)
    inputs = client.get_run(run.id).inputs
    assert inputs is not None
    found = {item.tags[0].value: item.dataset for item in inputs.dataset_inputs}
    profiles = {context: json.loads(str(dataset.profile)) for context, dataset in found.items()}
    assert set(found) == {"training", "test"}
    assert {dataset.digest for dataset in found.values()} == {version.digest}
    assert (found["training"].name, found["test"].name) == ("pets", "pets/test")
    assert profiles["training"] == {"train": {"cat": 2, "dog": 2}, "validation": {"cat": 1, "dog": 1}}
    assert profiles["test"] == {"test": {"cat": 1, "dog": 1}}
    manifest = Path(mlflow.data.get_source(found["training"]).load())
    assert manifest.read_bytes() == (version.directory / "manifest.parquet").read_bytes()
    assert client.get_run(run.id).data.tags["graftline.dataset_digest"] == version.digest
    files = {"manifest.parquet", "summary.json"}
    assert {item.path for item in client.list_artifacts(run.id, "data")} == {f"data/{name}" for name in files}
    (version.directory / "findings.json").write_text("[]")
    with start(tracking, directory / "2") as run:
        run.log_dataset(version)
    assert {item.path for item in client.list_artifacts(run.id, "data")} == {
        f"data/{name}" for name in files | {"findings.json"}
    }


def _git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_the_code(tmp_path: Path) -> None:
    assert environment.git_state(tmp_path) == ("unknown", "unknown")
    code = tmp_path / "code"
    code.mkdir()
    (code / "a.py").write_text("")
    _git(tmp_path, "init", "-q")
    assert environment.git_state(code) == ("unknown", "unknown")  # like an environment within another project
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "first")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    assert environment.git_state(code) == (commit, "false")
    (code / "a.py").write_text("1")
    assert environment.git_state(code) == (commit, "true")


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_state() == ("unknown", "unknown")


def test_the_environment_is_logged(tracking: Tracking, client: MlflowClient, directory: Path) -> None:
    with start(tracking, directory) as run:
        run.log_environment()
    tags = client.get_run(run.id).data.tags
    assert (tags["mlflow.source.git.commit"], tags["graftline.git.dirty"]) == environment.git_state()
    assert tags["graftline.version.mlflow"] == mlflow.__version__
    file = client.download_artifacts(run.id, "requirements/versions.json", str(directory))
    assert json.loads(Path(file).read_text())["mlflow"] == mlflow.__version__


def test_the_runs_of_a_group(tracking: Tracking, client: MlflowClient, directory: Path) -> None:
    group = tracking.start_group(name="sweep", experiment="pets", directory=directory)
    with start(tracking, directory / "0", parent=group.id) as child:
        pass
    group.finish()
    assert client.get_run(child.id).data.tags["mlflow.parentRunId"] == group.id
    assert client.get_run(group.id).info.status == "FINISHED"
    assert client.get_run(group.id).info.experiment_id == client.get_run(child.id).info.experiment_id


def test_the_runs_of_a_directory(tracking: Tracking, directory: Path) -> None:
    group = tracking.start_group(name="sweep", experiment="pets", directory=directory)
    ids = []
    for parent in (None, group.id, None):
        with start(tracking, directory / "0", parent=parent) as run:
            ids.append(run.id)
    group.finish()
    assert tracking.find_runs(directory / "0") == ids[::-1], "the newest first"
    assert replace(tracking, parent_run_id=group.id).find_runs(directory / "0") == [ids[1]]
    assert tracking.find_runs(directory / "1") == []


def test_resuming_goes_on(tracking: Tracking, client: MlflowClient, directory: Path) -> None:
    run = start(tracking, directory)
    run.log_params({"epochs": 1, "seed": 0}, "epochs: 1\n")
    run.log_metrics({"loss": 1.0}, 0)
    run.finish("FAILED", ValueError("broke"))
    assert tracking.find_output_directory(run.id) == directory
    with start(tracking, directory, resume_run_id=run.id) as resumed:
        resumed.log_params({"epochs": 2, "seed": 0, "new": True}, "epochs: 2\n")
        resumed.log_metrics({"loss": 0.5}, 1)
        assert resumed._outbox.wait(30)
        assert client.get_run(run.id).info.status == "RUNNING"
        with pytest.raises(UserError, match="still going"):
            start(tracking, directory, resume_run_id=run.id)
    logged = client.get_run(run.id)
    assert resumed.id == run.id
    assert logged.info.status == "FINISHED"
    assert history(client, run.id, "loss") == [(0, 1.0), (1, 0.5)]
    assert logged.data.params == {"epochs": "1", "seed": "0", "new": "true"}
    assert json.loads(logged.data.tags["graftline.changed_params"]) == {"epochs": "2"}
    assert logged.data.tags["graftline.error"] == ""
    assert len(client.search_runs([logged.info.experiment_id], run_view_type=ViewType.ALL)) == 1


def test_an_epoch_that_a_resume_trains_again_is_logged_once_unless_its_phase_begins_anew(
    tracking: Tracking, client: MlflowClient, directory: Path
) -> None:
    run = start(tracking, directory)
    run.log_metrics({"val/loss": 1.0, "images per second": 50.0}, 3, once=True)
    run.log_metrics({"test/accuracy": 0.5}, 3)
    run.log_metrics({"lr/head": 0.03}, 3, once=True)  # of the next phase, which begins there
    run.log_metrics({"val/loss": 9.0}, 6, once=True)
    LoggedEvents(run, directory / "augment.png").on_begin_anew(3)
    run.finish("KILLED")
    with start(tracking, directory, resume_run_id=run.id) as resumed:
        resumed.log_metrics({"val/loss": 1.0, "images per second": 60.0, "val/accuracy": 0.8}, 3, once=True)
        resumed.log_metrics({"lr/head": 0.01}, 3, once=True)
        resumed.log_metrics({"val/loss": 0.7}, 6, once=True)
        resumed.log_metrics({"test/accuracy": 0.6}, 3)
    with start(tracking, directory, resume_run_id=run.id) as resumed:
        LoggedEvents(resumed, directory / "augment.png").on_begin_anew(3)
        resumed.log_metrics({"val/loss": 1.0}, 3, once=True)
        resumed.log_metrics({"lr/head": 0.003}, 3, once=True)
        resumed.log_metrics({"val/loss": 0.6}, 6, once=True)
    assert sorted(history(client, run.id, "val/loss")) == [(3, 1.0), (6, 0.6), (6, 0.7), (6, 9.0)]
    assert sorted(history(client, run.id, "lr/head")) == [(3, 0.003), (3, 0.01), (3, 0.03)]
    assert client.get_run(run.id).data.metrics["val/loss"] == 0.6, "that of the phase that began anew"
    assert history(client, run.id, "images per second") == [(3, 50.0)]
    assert history(client, run.id, "val/accuracy") == [(3, 0.8)]
    assert history(client, run.id, "test/accuracy") == [(3, 0.5), (3, 0.6)]


def test_system_metrics(
    tracking: Tracking, client: MlflowClient, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "SECONDS", 0.05)
    tracking = Tracking(uri=tracking.uri)

    def steps_of(run: Run) -> list[int]:
        return [step for step, _ in history(client, run.id, "system/cpu_utilization_percentage")]

    with start(tracking, directory) as run:
        while len(steps_of(run)) < 2:
            time.sleep(0.05)
    before = steps_of(run)
    with start(tracking, directory, resume_run_id=run.id):
        while len(steps_of(run)) < len(before) + 2:
            time.sleep(0.05)
    steps = steps_of(run)
    assert steps == list(range(len(steps)))
    assert client.get_run(run.id).data.metrics["system/system_memory_usage_megabytes"] > 0


def test_what_mlflow_refuses_is_kept_and_told(
    tracking: Tracking, client: MlflowClient, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = directory / "gone.png"
    gone.touch()
    with start(tracking, directory) as run:
        run.set_tags({"first": "a", "no*key": "x", "undecodable": "\udc80", "last": "b"})
        assert run._outbox.wait(30)
        run._outbox.journal.append({"kind": "artifact", "path": "gone.png", "folder": ""})
        gone.unlink()
        run.log_metrics({"loss": 1.0}, 0)
    logged = client.get_run(run.id)
    assert logged.info.status == "FINISHED"
    assert {"first": "a", "last": "b"}.items() <= logged.data.tags.items()
    assert history(client, run.id, "loss") == [(0, 1.0)]
    refused = [json.loads(line) for line in (directory / "outbox" / "refused.jsonl").read_text().splitlines()]
    assert [(item["kind"], item.get("key") or item["path"]) for item in refused] == [
        ("tag", "no*key"),
        ("tag", "undecodable"),
        ("artifact", "gone.png"),
    ]
    assert "MLflow refused 3 of this run's values" in capsys.readouterr().out


def test_a_users_mistakes(tracking: Tracking, client: MlflowClient, directory: Path) -> None:
    for uri in ("mlruns", "file:///tmp/mlruns"):
        with pytest.raises(UserError, match="give a database such as sqlite"):
            start(Tracking(uri=uri), directory)
    with pytest.raises(UserError, match="There is no run"):
        start(tracking, directory, resume_run_id="0" * 32)
    with pytest.raises(UserError, match=r"There is no run x in the tracking database .*, which has none\."):
        tracking.find_output_directory("x")
    with start(tracking, directory) as run:
        pass
    with pytest.raises(UserError, match=rf"There is no run x in .*; the newest are {run.id} \(first\)\."):
        tracking.find_output_directory("x")
    client.delete_run(run.id)
    with pytest.raises(UserError, match=f"Run {run.id} in .* is deleted: restore it with `mlflow runs restore"):
        tracking.find_output_directory(run.id)
    client.delete_experiment(client.get_run(run.id).info.experiment_id)
    with pytest.raises(UserError, match="is deleted: restore it"):
        start(tracking, directory)
    with pytest.raises(UserError, match=r"experiment '\w+' is deleted: restore it"):
        tracking.check(client.get_experiment(client.get_run(run.id).info.experiment_id).name)
    tracking.check("another")
    tracking.check()
    with pytest.raises(UserError, match="holds no run"):
        sync(directory / "elsewhere")
