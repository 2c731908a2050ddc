"""Nodes of a Ray cluster with another environment than the command's: what they are told, and what is missing there."""

import socket
from pathlib import Path

import pytest
from ray_nodes import start_nodes
from tiny_weights import write_weights
from workplace import TINY, Workplace

pytest.importorskip("ray", reason="ray is missing: make test-extras installs it")
pytestmark = pytest.mark.extras

SECONDS = 300


@pytest.mark.parametrize("own", [["seed=0,1"], ["trainer=ray", "trainer.devices=2"]])
def test_runs_are_tracked_where_the_command_says(
    own: list[str], workplace: Workplace, color_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["data=folder", f"data.path={color_folder}", *TINY, "tracking=server", "tracking.system_metrics=false"]
    given += ["trainer.max_epochs=1", "cluster=ray", *own]
    words = {line.partition("=")[0]: line for line in given}
    with start_nodes() as nodes:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        nodes.add(2)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace.root / 'mlflow.db'}")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
        address = f"cluster.address={nodes.address}"
        ran = workplace.run_command("train", *words.values(), address, timeout=SECONDS)
    assert ran.code == 0, ran.output
    lacking = "MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD are set here, but not on node "
    assert f"{lacking}{socket.gethostname()} of the Ray cluster, nor on 1 more" in ran.output
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    runs = workplace.mlflow.search_runs([experiment.experiment_id], "tags.`graftline.stage` = 'train'")
    assert {run.info.status for run in runs} == {"FINISHED"}
    texts = [file.read_text(errors="replace") for file in workplace.root.rglob("outputs/**/*") if file.is_file()]
    assert not any("correct horse" in text for text in (ran.output, *texts))


@pytest.mark.parametrize("own", [["seed=0,1"], ["trainer=ray", "trainer.devices=1"]])
@pytest.mark.parametrize("what", ["outputs", "images"])
def test_what_a_node_does_not_share_is_told_before_anything_slow(
    what: str, own: list[str], workplace: Workplace, color_folder: Path
) -> None:
    outputs = workplace.root / "outputs"
    outputs.mkdir()
    words = ["data=folder", f"data.path={color_folder}", "cluster=ray", *own]
    with start_nodes() as nodes, nodes.without(outputs if what == "outputs" else color_folder):
        ran = workplace.run_command("train", *words, f"cluster.address={nodes.address}", timeout=SECONDS)
    assert ran.code == 1, ran.output
    seen = f"what is written to {outputs}/train/" if what == "outputs" else f"{color_folder}/"
    assert f"of the Ray cluster does not see {seen}" in ran.output
    assert not [*outputs.glob("train/*/**/checkpoints")]


@pytest.mark.parametrize("command", [["train", "seed=0,1"], ["ensemble", "members=2"]])
def test_a_node_without_the_weights_is_named_before_anything_slow(
    command: list[str], workplace: Workplace, color_folder: Path
) -> None:
    write_weights(weights := workplace.root / "weights", ["test_efficientnet"])
    own = ["backbone.weights=directory", "freeze=all_but_head", "cluster=ray"]
    words = {line.partition("=")[0]: line for line in ["data=folder", f"data.path={color_folder}", *TINY, *own]}
    with start_nodes() as nodes, nodes.without(weights):
        address = f"cluster.address={nodes.address}"
        ran = workplace.run_command(*command, *words.values(), address, timeout=SECONDS)
    assert ran.code == 1, ran.output
    told = " ".join(ran.output.split())
    assert f"Node {socket.gethostname()} of the Ray cluster has no weights for 'test_efficientnet', which are" in told
    assert "put them there, too, or let backbone.weights_dir be on a file system that all nodes share." in told
    assert not [*workplace.root.rglob("last.ckpt")]
