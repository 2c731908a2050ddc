"""A training that Ray starts: one of its processes is killed, and it goes on from the last checkpoint, as one run."""

import signal
import subprocess

import psutil
import pytest
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

    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    (run,) = workplace.mlflow.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")]
    assert steps == [3 * (epoch + 1) for epoch in range(30)], "each epoch once"
    assert len(list(workplace.root.glob("outputs/train/*/result.json"))) == 1


def test_ctrl_c_ends_the_training_and_says_so(workplace: Workplace, color_folder: object) -> None:
    process = start(workplace, color_folder, max_epochs=4000)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 130, output
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    (run,) = workplace.mlflow.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED", output


def start(workplace: Workplace, color_folder: object, max_epochs: int) -> subprocess.Popen[str]:
    """Start a training of two processes, and wait for its first checkpoint."""
    own = ["trainer=ray", "trainer.devices=2", f"trainer.max_epochs={max_epochs}", "train.patience=null"]
    given = ["data=folder", f"data.path={color_folder}", *TINY, *own, "train.batch_size=6"]
    process = workplace.start_command("train", *{line.partition("=")[0]: line for line in given}.values())
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
