"""An ensemble, a search and a prediction on Ray; a member whose worker or node is killed goes on."""

import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ray_nodes import start_nodes
from tiny_weights import write_weights
from workplace import TINY, Workplace

from conftest import COLORS, paint

pytest.importorskip("ray", reason="ray is missing: make test-extras installs it")
pytestmark = pytest.mark.extras

SECONDS = 300
ON_RAY = ("cluster=ray", "cluster.num_workers=2")


def test_a_member_whose_worker_is_killed_goes_on_and_the_ensemble_predicts_on_ray(
    workplace: Workplace, color_folder: Path
) -> None:
    process = start_ensemble(workplace, color_folder, 30, *ON_RAY)
    workplace.await_file(process, "outputs/ensemble/*/members/1/checkpoints/last.ckpt", SECONDS)
    workers = psutil.Process(process.pid).children(recursive=True)
    killed = [one for one in workers if "ray::train_on_worker" in one.cmdline()[0]]
    killed[0].kill()
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0, output
    check_members(workplace, output, 30)

    predicted = workplace.run_command("predict", "model=colors0", f"images={color_folder}", *ON_RAY, timeout=SECONDS)
    assert predicted.code == 0, predicted.output
    assert "Spread over 2 workers of Ray" in predicted.output
    assert predicted.result["images"] == 60
    assert predicted.result["unreadable"] == 0


def test_a_member_whose_node_is_killed_goes_on_on_the_other_one(workplace: Workplace, color_folder: Path) -> None:
    with start_nodes() as nodes:
        nodes.add(2)
        process = start_ensemble(workplace, color_folder, 60, "cluster=ray", f"cluster.address={nodes.address}")
        for number in (1, 2):
            workplace.await_file(process, f"outputs/ensemble/*/members/{number}/checkpoints/last.ckpt", SECONDS)
        nodes.kill(nodes.find_running("train_on_worker")[0])
        output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0, output
    check_members(workplace, output, 60)


def start_ensemble(workplace: Workplace, color_folder: Path, max_epochs: int, *on_ray: str) -> subprocess.Popen[str]:
    """Start an ensemble of two members, which train for so many epochs."""
    own = ["members=2", "choose=all", f"trainer.max_epochs={max_epochs}", "train.patience=null", *on_ray]
    given = ["data=folder", f"data.path={color_folder}", *TINY, *own]
    return workplace.start_command("ensemble", *{line.partition("=")[0]: line for line in given}.values())


def check_members(workplace: Workplace, output: str, max_epochs: int) -> None:
    """Make sure that each of the two members is one whole run, and that no epoch is missing or there twice."""
    assert "Members are spread over Ray, 2 at a time" in output
    assert re.search(r"Member 2 of 2: test_efficientnet, seed 1: outputs/ensemble/.*, test accuracy \d", output)
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    runs = workplace.mlflow.search_runs([experiment.experiment_id], "tags.`graftline.stage` = 'train'")
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    assert {run.data.params["seed"] for run in runs} == {"0", "1"}
    for run in runs:
        assert "mlflow.parentRunId" in run.data.tags
        steps = [metric.step for metric in workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")]
        assert steps == [3 * (epoch + 1) for epoch in range(max_epochs)], "each epoch once"
    logs = sorted(workplace.root.glob("outputs/ensemble/*/members/*/log.txt"))
    assert len(logs) == 2
    assert all(
        f"epoch  {max_epochs} of {max_epochs}" in log.read_text() and "test split" in log.read_text() for log in logs
    )


def test_the_frozen_passes_of_a_search_are_spread(workplace: Workplace, color_folder: Path) -> None:
    write_weights(workplace.root / "weights")
    left_out = ("backbone", "backbone.weights", "backbone.image_size", "freeze", "features")
    tiny = [one for one in TINY if one.split("=")[0] not in left_out]
    networks = ["backbone=test_efficientnet,test_resnet", "backbone.image_size=64", "freeze=all_but_head"]
    check_spread(workplace, "search", "minutes=3", "data=folder", f"data.path={color_folder}", *tiny, *networks)


def test_the_frozen_pass_of_an_audit_is_spread(workplace: Workplace, color_folder: Path) -> None:
    network = ("backbone=test_efficientnet", "backbone.weights=none", "backbone.image_size=32", "accelerator=cpu")
    check_spread(workplace, "audit", "data=folder", f"data.path={color_folder}", *network)


def test_the_frozen_pass_of_a_learning_curve_is_spread(workplace: Workplace, tmp_path: Path) -> None:
    for number, (name, color) in enumerate(COLORS.items()):
        (tmp_path / "colors" / name).mkdir(parents=True)
        for index in range(100):
            paint(color, 100 * number + index, size=16).save(tmp_path / "colors" / name / f"{index}.png")
    own = (
        "data=folder",
        f"data.path={tmp_path / 'colors'}",
        "data.split.validation=0.2",
        "data.split.test=0.2",
        "seeds=3",
    )
    network = ("backbone=test_efficientnet", "backbone.weights=none", "backbone.image_size=32", "accelerator=cpu")
    check_spread(workplace, "learning-curve", *own, *network, "resamples=100")


def check_spread(workplace: Workplace, stage: str, *words: str) -> None:
    """Make sure that a stage does its work, and that workers compute activations for it."""
    process = workplace.start_command(stage, *words, *ON_RAY)
    has_computed = False
    while process.poll() is None:
        with suppress(psutil.Error):
            workers = psutil.Process(process.pid).children(recursive=True)
            has_computed |= any("ray::compute" in " ".join(worker.cmdline()) for worker in workers)
        time.sleep(0.02)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert has_computed
