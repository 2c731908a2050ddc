"""A sweep on Ray: a run whose worker or node is killed goes on, and there is one run of each."""

import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ray_nodes import start_nodes
from workplace import TINY, Workplace

from graftline import ray_cluster
from graftline.pipeline.cli.composed_stage import compose_all
from graftline.pipeline.cli.sweep import run_all

pytest.importorskip("ray", reason="ray is missing: make test-extras installs it")
pytestmark = pytest.mark.extras

SECONDS = 300


def test_a_worker_that_is_killed_loses_no_run(workplace: Workplace, color_folder: Path) -> None:
    process = start_sweep(workplace, color_folder, 30, "cluster.num_workers=2")
    workplace.await_file(process, "outputs/train/*/0/checkpoints/last.ckpt", SECONDS)
    killed = [one for one in psutil.Process(process.pid).children(recursive=True) if "ray::run_job" in one.cmdline()[0]]
    killed[0].kill()
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0, output
    check_runs(workplace, output, 30)


def test_a_node_that_is_killed_loses_no_run(workplace: Workplace, color_folder: Path) -> None:
    with start_nodes() as nodes:
        nodes.add(2)
        process = start_sweep(workplace, color_folder, 60, f"cluster.address={nodes.address}")
        for number in (0, 1):
            workplace.await_file(process, f"outputs/train/*/{number}/checkpoints/last.ckpt", SECONDS)
        nodes.kill(nodes.find_running("run_job")[0])
        output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0, output
    check_runs(workplace, output, 60)
    (log,) = workplace.root.glob("outputs/train/*/log.txt")
    told = log.read_text()
    for number in (0, 1):
        assert f"Run {number}: begins on node " in told
        assert re.search(rf"^Run {number}: .*seed={number}.*: done, test accuracy \d", told, re.MULTILINE)
    assert told.count("has left the Ray cluster") == 1
    assert len(re.findall(r"^Run [01]: is on node .* now, as its worker was lost\.$", told, re.MULTILINE)) == 1
    assert re.search(r"^2 runs *$", told, re.MULTILINE), "the comparison"
    assert "train loss" not in told, "which each run's own log has"


def start_sweep(
    workplace: Workplace, color_folder: Path, max_epochs: int, of_cluster: str, *more: str
) -> subprocess.Popen[str]:
    """Start a sweep of two runs, which train for so many epochs."""
    return workplace.start_command("train", *words(color_folder, max_epochs, of_cluster, *more))


def words(color_folder: Path, max_epochs: int, *more: str) -> list[str]:
    """Return the overrides of a sweep of two runs."""
    own = ["seed=0,1", "cluster=ray", f"trainer.max_epochs={max_epochs}", "train.patience=null"]
    given = ["data=folder", f"data.path={color_folder}", *TINY, *own, *more]
    return [*{line.partition("=")[0]: line for line in given}.values()]


def check_runs(workplace: Workplace, output: str, max_epochs: int) -> None:
    """Make sure that each of the two runs is whole, and that no epoch is missing or there twice."""
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    runs = workplace.mlflow.search_runs([experiment.experiment_id], "tags.`graftline.stage` = 'train'")
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.status for run in children] == ["FINISHED"] * 2
    assert len(children) == 2
    for run in children:
        steps = [metric.step for metric in workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")]
        assert steps == [3 * (epoch + 1) for epoch in range(max_epochs)], "each epoch once"
    assert "Spread over Ray, 2 at a time" in output
    assert len(list(workplace.root.glob("outputs/train/*/*/result.json"))) == 2


def test_a_directory_that_was_used_before_is_trained_anew(workplace: Workplace, color_folder: Path) -> None:
    for seeds in ("0,1", "2,3"):
        own = (f"seed={seeds}", "hydra.sweep.dir=outputs/same")
        process = start_sweep(workplace, color_folder, 1, "cluster.num_workers=2", *own)
        output = process.communicate(timeout=SECONDS)[0]
        assert process.returncode == 0, output
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    runs = workplace.mlflow.search_runs([experiment.experiment_id], "tags.`graftline.stage` = 'train'")
    assert sorted(run.data.params["seed"] for run in runs) == ["0", "1", "2", "3"]
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.fixture
def _alone() -> Iterator[None]:
    """This process is connected with no cluster before and after."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()


@pytest.mark.usefixtures("_alone")
def test_a_run_that_is_lost_for_good_leaves_the_others_alone(
    workplace: Workplace, color_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace.root)
    monkeypatch.setattr(ray_cluster, "MOST_RETRIES", 0)
    own = ("cluster.num_workers=1", "seed=0,1,2", "hydra.sweep.dir=outputs/sweep")
    killer = threading.Thread(target=kill_holder, args=(workplace.root / "outputs/sweep/0/.hydra/lock",))
    killer.start()
    code = run_all(compose_all("train", words(color_folder, 1, *own)))
    killer.join()
    output = capsys.readouterr().out
    assert code == 1, output
    assert ": failed. The Ray cluster lost a task for good" in output, output
    assert output.count(": done") == 2
    assert "Runs: 3" in output, "in a terminal a bar"
    assert "3 runs" in output, "the comparison"
    assert len(list(workplace.root.glob("outputs/sweep/*/result.json"))) == 2


def kill_holder(file: Path) -> None:
    """Kill the process of a task that holds a file, as soon as there is one."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if str(file) in [opened.path for opened in process.open_files()]:
                    process.kill()
                    return
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_runs(workplace: Workplace, color_folder: Path, how: signal.Signals) -> None:
    process = start_sweep(workplace, color_folder, 4000, "cluster.num_workers=2")
    workplace.await_file(process, "outputs/train/*/0/checkpoints/last.ckpt", SECONDS)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 130, output
    assert not psutil.wait_procs(workers, timeout=30)[1]
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    runs = workplace.mlflow.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"] * 3
    (log,) = workplace.root.glob("outputs/train/*/log.txt")
    assert log.read_text().splitlines()[-1].startswith("Interrupted. ")


def test_what_a_run_fails_of_is_told_here(workplace: Workplace, color_folder: Path) -> None:
    own = ("cluster.num_workers=2", "seed=0", "optim=sgd", "optim.lr=0.003,1e30")
    process = start_sweep(workplace, color_folder, 1, *own)
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 1, output
    (told,) = (line.partition(": failed. ")[2] for line in output.splitlines() if ": failed. " in line)
    assert "diverged" in told
    assert "lower optim.lr" in told
    (log,) = workplace.root.glob("outputs/train/*/1/log.txt")
    assert told in log.read_text(), "the sentence of its own log"
