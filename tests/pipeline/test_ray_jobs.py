"""Several trainings for a Ray cluster, without one: which are refused, and which run a worker goes on with."""

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ingested import ingest
from workplace import TINY, Workplace

from graftline.errors import UserError
from graftline.files import write_json
from graftline.locks import Lock
from graftline.pipeline.cli import compose
from graftline.pipeline.cli.composed_stage import compose_all
from graftline.pipeline.cli.ray_sweep import HERE, RemoteJob, _find_parent, run_job, run_spread, set_variables
from graftline.pipeline.cli.sweep import run_all
from graftline.ray_cluster import RayCluster

ONE_PROCESS = r"^trainer\.devices is 2, but each of several trainings on a Ray cluster is one process: give trainer\."


@pytest.mark.parametrize("own", [["trainer=ddp_cpu"], ["trainer=cpu,ddp_cpu"], ["trainer.devices=1,2"]])
def test_runs_of_several_processes_are_not_spread(
    own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = compose_all("train", ["data.path=photos", "seed=0,1", "cluster=ray", *own])
    with pytest.raises(UserError, match=ONE_PROCESS):
        run_all(jobs)
    assert not list(tmp_path.iterdir()), "before anything is started"


def test_a_number_of_processes_that_ray_cannot_start_is_refused_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = compose_all("train", ["data.path=photos", "seed=0,1", "trainer=ray", "trainer.devices=auto"])
    with pytest.raises(UserError, match=r"trainer\.devices is auto: give trainer=ray the number of processes"):
        run_all(jobs)
    assert not list(tmp_path.iterdir())


def test_what_a_configuration_reads_from_the_environment_is_what_it_reads_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@mlflow:5000")
    remote = RemoteJob.of(compose("train", ["data.path=photos", "tracking=server", "cluster=ray"]))
    assert "secret" not in remote.config, "which becomes a file of the run"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # as on another machine
    assert remote.compose().config.tracking.uri == "http://127.0.0.1:5000"
    set_variables(remote.variables)
    assert remote.compose().config.tracking.uri == "http://ann:secret@mlflow:5000"
    assert remote.compose().config.cluster == HERE

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    remote = RemoteJob.of(compose("train", ["data.path=photos", "tracking=server"]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://another:5000")
    set_variables(remote.variables)
    assert remote.compose().config.tracking.uri == "http://127.0.0.1:5000"


def test_a_run_elsewhere_grows_from_the_version_that_it_has_here(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    named = ["data=folder", f"data.path={color_folder}", "data.name=set", "data.directory=versions"]

    def find(*own: str) -> tuple[dict[str, str], list[Path]]:
        return _find_parent(compose("train", [*named, *own]))

    assert find() == ({"data.parent": "none"}, []), "whatever an earlier run has left there"
    version = ingest(tmp_path, color_folder).version
    pinned = {"data.parent": str(version.directory.absolute())}
    assert version.files
    assert find() == (pinned, version.files)
    assert find(f"data.parent={os.path.relpath(version.directory)}") == (pinned, version.files)
    assert find("data.parent=models:/colors@champion") == ({}, []), "which each node finds by itself"

    def share(_: RayCluster, files: Mapping[str, bytes]) -> None:
        raise UserError(" ".join(files))

    monkeypatch.setattr("graftline.pipeline.cli.ray_sweep.find_nodes_apart", lambda *_: False)
    monkeypatch.setattr("graftline.pipeline.cli.ray_sweep.check_weights", lambda *_: None)
    monkeypatch.setattr(RayCluster, "share", share)
    board: Any = None
    with pytest.raises(UserError, match=r"manifest\.parquet"):  # of a folder that is perhaps not shared
        next(run_spread([compose("train", named)], RayCluster(), board))


@pytest.mark.parametrize("has_result", [False, True])
def test_a_worker_that_goes_on_while_mlflow_is_away_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_result: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ["tracking=server", "tracking.uri=http://127.0.0.1:9", "hydra.run.dir=outputs/one"]
    job = compose("train", ["data.path=photos", *own]).with_value("tracking.parent_run_id", "a" * 32)
    remote = RemoteJob.of(job)
    Path(remote.directory).mkdir(parents=True)
    if has_result:  # perhaps of an earlier command
        write_json(Path(remote.directory) / "result.json", {})
    outcome = run_job(remote)
    assert outcome.code == 1
    assert "127.0.0.1:9" in outcome.told
    assert outcome.told in (tmp_path / "outputs/one/log.txt").read_text()


@pytest.mark.long
def test_a_worker_waits_for_one_that_lives_on(
    workplace: Workplace, color_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace.root)
    words = ["data=folder", f"data.path={color_folder}", *TINY, "hydra.run.dir=outputs/one"]
    remote = RemoteJob.of(compose("train", words))
    lock = Lock(workplace.root / "outputs/one/.hydra/lock", shared=False, temporary=True)
    process = workplace.start_function(partial(exit_code, remote))
    time.sleep(5)
    assert process.code is None, process.output
    lock.close()
    assert process.wait(300) == 0, process.output


@pytest.mark.long
def test_a_worker_goes_on_with_no_run_of_an_earlier_command(
    workplace: Workplace, color_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace.root)
    words = ["data=folder", f"data.path={color_folder}", *TINY, "train.patience=null", "hydra.run.dir=outputs/one"]
    longer = [word.replace("max_epochs=2", "max_epochs=4000") for word in words]
    workplace.kill("outputs/one/checkpoints/last.ckpt", "train", *longer)
    before = find_runs(workplace)

    remote = RemoteJob.of(compose("train", [*words, "seed=1"]), earlier=[*before])
    ran = workplace.run_function(partial(exit_code, remote))
    assert ran.code == 0, ran.output
    after = find_runs(workplace)
    assert [*before.values()] == ["0"]
    assert sorted(after.values()) == ["0", "1"]
    assert before.items() <= after.items()


def exit_code(remote: RemoteJob) -> int:
    return run_job(remote).code


def find_runs(workplace: Workplace) -> dict[str, str]:
    """Return the seeds of the runs, by their ids."""
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    runs = workplace.mlflow.search_runs([experiment.experiment_id])
    return {run.info.run_id: run.data.params["seed"] for run in runs}
