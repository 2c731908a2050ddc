"""A sweep on Ray: a run whose worker is killed goes on, and there is one run of each."""

import signal
from pathlib import Path

import psutil
import pytest
from workplace import TINY, Workplace

ray = pytest.importorskip("ray", reason="ray is missing: make test-extras installs it")
pytestmark = pytest.mark.extras

SECONDS = 200


def test_a_worker_that_is_killed_loses_no_run(workplace: Workplace, color_folder: Path) -> None:
    own = ["seed=0,1", "cluster=ray", "cluster.num_workers=2", "trainer.max_epochs=30", "train.patience=null"]
    given = ["data=folder", f"data.path={color_folder}", *TINY, *own]
    process = workplace.start_command("train", *{line.partition("=")[0]: line for line in given}.values())
    workplace.await_file(process, "outputs/train/*/0/checkpoints/last.ckpt", SECONDS)
    killed = [one for one in psutil.Process(process.pid).children(recursive=True) if "ray::run_job" in one.cmdline()[0]]
    killed[0].kill()
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0, output

    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    runs = workplace.mlflow.search_runs([experiment.experiment_id], "tags.`graftline.stage` = 'train'")
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.status for run in children] == ["FINISHED"] * 2
    assert len(children) == 2
    for run in children:
        steps = [metric.step for metric in workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")]
        assert steps == [3 * (epoch + 1) for epoch in range(30)], "each epoch once"
    assert "Spread over Ray, 2 at a time" in output
    assert len(list(workplace.root.glob("outputs/train/*/*/result.json"))) == 2


def test_ctrl_c_ends_all_runs(workplace: Workplace, color_folder: Path) -> None:
    own = ["seed=0,1", "cluster=ray", "cluster.num_workers=2", "trainer.max_epochs=4000", "train.patience=null"]
    given = ["data=folder", f"data.path={color_folder}", *TINY, *own]
    process = workplace.start_command("train", *{line.partition("=")[0]: line for line in given}.values())
    workplace.await_file(process, "outputs/train/*/0/checkpoints/last.ckpt", SECONDS)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 130, output
    assert not psutil.wait_procs(workers, timeout=30)[1]
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    runs = workplace.mlflow.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"] * 3
