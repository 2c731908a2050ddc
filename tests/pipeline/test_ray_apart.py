"""Nodes that share no file system with the command: models of their runs come by way of the tracking server."""

import re
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_server import Server
from ray_nodes import start_nodes
from workplace import TINY, Workplace

from graftline.pipeline.bundles.source import find_bundle
from graftline.tracking.tracking import Tracking

pytest.importorskip("ray", reason="ray is missing: make test-extras installs it")
pytestmark = [pytest.mark.extras, pytest.mark.timeout(900)]

SECONDS = 400


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def words(color_folder: Path, server: Server, *own: str) -> list[str]:
    given = ["data=folder", f"data.path={color_folder}", *TINY, "tracking=server", f"tracking.uri={server.uri}", *own]
    return [*{line.partition("=")[0]: line for line in given}.values()]


def find_members(server: Server) -> list[Run]:
    """Return the runs of members."""
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("members")
    if experiment is None:
        return []
    return [*client.search_runs([experiment.experiment_id], "tags.`graftline.stage` = 'train'")]


def test_a_sweep(workplace: Workplace, server: Server, color_folder: Path, tmp_path: Path) -> None:
    given = words(color_folder, server, "trainer.max_epochs=1")
    before = workplace.run_command("ingest", *given[:2])  # whose splits are inherited there, too
    assert before.code == 0, before.output
    with start_nodes() as nodes, nodes.without(workplace.root):
        on_ray = ("seed=0,1", "cluster=ray", f"cluster.address={nodes.address}", "data.split.seed=5")
        ran = workplace.run_command("train", *given, *on_ray, timeout=SECONDS)
    assert ran.code == 0, ran.output
    assert "does not see what is written to " in ran.output
    log = (ran.directory / "log.txt").read_text()
    assert len(re.findall(r": done, test accuracy \d", log)) == 2
    assert not (ran.directory / "0" / "bundle").exists()
    results = [(ran.directory / str(number) / "result.json").read_text() for number in (0, 1)]
    assert all(before.result["dataset_digest"] in one for one in results), "with the splits that were drawn here"
    run_ids = [re.findall(r'"run_id": "(\w{32})"', one)[0] for one in results]
    bundles = [find_bundle(run_id, Tracking(uri=server.uri)) for run_id in run_ids]
    assert all((bundle / "model.onnx").is_file() and bundle.is_relative_to(tmp_path) for bundle in bundles)


def test_an_ensemble_that_loses_a_node(workplace: Workplace, server: Server, color_folder: Path) -> None:
    own = ("members=2", "choose=all", "train.patience=null", "trainer.max_epochs=60", "tracking.experiment=members")
    with start_nodes() as nodes, nodes.without(workplace.root):
        with nodes.without(workplace.root):
            given = words(color_folder, server, *own, "cluster=ray", f"cluster.address={nodes.address}")
            process = workplace.start_command("ensemble", *given)
            deadline = time.monotonic() + SECONDS
            while sum("val/loss" in run.data.metrics for run in find_members(server)) < 2:
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.5)
        output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0, output
    assert "as its worker was lost" in output
    runs = find_members(server)
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED", "FINISHED"]
    (bundle,) = workplace.root.glob("outputs/ensemble/*/bundle")
    assert len([*bundle.glob("members/*/model.onnx")]) == 2
    assert not [*workplace.root.glob("outputs/ensemble/*/members/*/bundle")]
