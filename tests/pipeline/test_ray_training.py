"""A training that Ray starts: one of its processes is killed, and it goes on from the last checkpoint, as one run."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run
from ray_nodes import start_nodes
from safetensors.torch import load_file
from workplace import TINY, Workplace

pytest.importorskip("ray", reason="ray is missing: make test-extras installs it")
pytestmark = pytest.mark.extras

SECONDS = 400


def test_a_process_that_is_killed_is_started_again(workplace: Workplace, color_folder: object) -> None:
    process = start(workplace, color_folder, max_epochs=30)
    further = [one for one in psutil.Process(process.pid).children(recursive=True) if is_rank(one, "1")]
    further[-1].kill()
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0, output
    assert "2 processes, started by Ray" in output
    assert "test accuracy" in output

    (run,) = find_runs(workplace)
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")]
    assert steps == [3 * (epoch + 1) for epoch in range(30)], "each epoch once"
    assert len(list(workplace.root.glob("outputs/train/*/result.json"))) == 1


def test_two_processes_give_the_numbers_of_one(
    workplace: Workplace, make_workplace: Callable[[str], Workplace], color_folder: Path
) -> None:
    """A network without batch statistics, in batches of 6 for each of two processes, and of 12 for one."""
    ran = workplace.run_command("train", *words(color_folder, 2, "backbone=test_vit"), timeout=SECONDS)
    assert ran.code == 0, ran.output
    place = make_workplace("alone")
    own = ("backbone=test_vit", "trainer=cpu", "trainer.devices=1", "train.batch_size=12")
    alone = place.run("train", *words(color_folder, 2, *own))
    assert alone.code == 0, alone.output
    ((run,), (expected,)) = map(find_runs, (workplace, place))
    for name in ("train/loss", "val/loss", "val/accuracy", "test/accuracy"):
        assert run.data.metrics[name] == pytest.approx(expected.data.metrics[name], abs=1e-6)
    weights, of_one = (load_file(one.directory / "bundle" / "model.safetensors") for one in (ran, alone))
    # AdamW divides by the size of a gradient, so that the rounding of a small one is seen in its weight
    assert max(float((weights[name] - of_one[name]).abs().max()) for name in of_one) < 5e-5


def test_a_node_that_does_not_come_back_ends_the_training(
    workplace: Workplace, color_folder: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    with start_nodes() as nodes:
        lost, _ = nodes.add(2)
        process = start(workplace, color_folder, 4000, "cluster=ray", f"cluster.address={nodes.address}")
        nodes.kill(lost)
        output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 1, output
    assert "Ray gave the training up (" in output
    assert "train.resume goes on with the run, on fewer processes too (trainer.devices)." in output


def test_ctrl_c_ends_the_training_and_says_so(workplace: Workplace, color_folder: object) -> None:
    process = start(workplace, color_folder, max_epochs=4000)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 130, output
    (run,) = find_runs(workplace)
    assert run.info.status == "KILLED", output


def test_a_directory_that_was_used_before_is_trained_anew(workplace: Workplace, color_folder: object) -> None:
    here = "hydra.run.dir=outputs/same"
    own = words(color_folder, 4000, "trainer=cpu", "trainer.devices=1", here)
    workplace.kill("outputs/same/checkpoints/last.ckpt", "train", *own)
    (workplace.root / "outputs/same/result.json").write_text("{}")
    ran = workplace.run_command("train", *words(color_folder, 1, here, "seed=1"), timeout=SECONDS)
    assert ran.code == 0, ran.output
    assert ran.result["epochs"] == 1
    runs = {run.data.params["seed"]: run for run in find_runs(workplace)}
    assert sorted(runs) == ["0", "1"]
    assert runs["1"].info.status == "FINISHED"
    assert [one.step for one in workplace.mlflow.get_metric_history(runs["1"].info.run_id, "val/loss")] == [3]


def test_several_trainings_take_place_one_after_the_other(workplace: Workplace, color_folder: object) -> None:
    ran = workplace.run_command("train", *words(color_folder, 1, "cluster=ray", "seed=0,1"), timeout=SECONDS)
    assert ran.code == 0, ran.output
    assert ran.output.count("2 processes, started by Ray") == 2
    children = [run for run in find_runs(workplace) if "mlflow.parentRunId" in run.data.tags]
    assert {run.data.params["seed"]: run.info.status for run in children} == {"0": "FINISHED", "1": "FINISHED"}


def find_runs(workplace: Workplace) -> list[Run]:
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    return [*workplace.mlflow.search_runs([experiment.experiment_id])]


def words(color_folder: object, max_epochs: int, *more: str) -> list[str]:
    """Return the overrides of a training of two processes."""
    own = ["trainer=ray", "trainer.devices=2", f"trainer.max_epochs={max_epochs}", "train.patience=null"]
    given = ["data=folder", f"data.path={color_folder}", *TINY, *own, "train.batch_size=6", *more]
    return [*{line.partition("=")[0]: line for line in given}.values()]


def start(workplace: Workplace, color_folder: object, max_epochs: int, *more: str) -> subprocess.Popen[str]:
    """Start a training of two processes, and wait for its first checkpoint."""
    process = workplace.start_command("train", *words(color_folder, max_epochs, *more))
    workplace.await_file(process, "outputs/train/*/checkpoints/last.ckpt", SECONDS)
    return process


def is_rank(process: psutil.Process, rank: str) -> bool:
    """Tell whether a process is one of ours, of a rank."""
    try:
        return "ray_training" in " ".join(process.cmdline()) and process.environ().get("RANK") == rank
    except psutil.Error:
        return False


def test_more_processes_than_there_is_room_for_are_refused(workplace: Workplace, color_folder: object) -> None:
    words = ["data=folder", f"data.path={color_folder}", "trainer=ray", "trainer.devices=999"]
    ran = workplace.run_command("train", *words, timeout=SECONDS)
    assert ran.code == 1
    assert "trainer.devices is 999, but the Ray cluster has" in ran.output
