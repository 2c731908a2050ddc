"""Ctrl-C while Ray is at work: the command says so, and leaves no process of Ray's."""

import io
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tiny_weights import write_weights
from workplace import TINY, Workplace

from conftest import COLORS, paint

pytest.importorskip("ray", reason="ray is missing: make test-extras installs it")
pytestmark = pytest.mark.extras

SECONDS = 300
ON_RAY = ("cluster=ray", "cluster.num_workers=2")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 200 images each, so large that a task takes a while; each has a content of its own."""
    root = tmp_path / "photos"
    for name, color in list(COLORS.items())[:2]:
        (root / name).mkdir(parents=True)
        file = io.BytesIO()
        paint(color, 0, size=1500).save(file, "PNG")
        for number in range(200):
            (root / name / f"{number:03}.png").write_bytes(file.getvalue() + str(number).encode())
    return root


def test_a_frozen_pass(workplace: Workplace, photos: Path) -> None:
    write_weights(workplace.root / "weights")
    own = ("backbone.image_size=64", "freeze=all_but_head", "features=cached", "trainer.max_epochs=1", *ON_RAY)
    given = {line.partition("=")[0]: line for line in ("data=folder", f"data.path={photos}", *TINY, *own)}
    del given["backbone.weights"]
    interrupt(workplace.start_command("train", *given.values()), "compute")
    experiment = workplace.mlflow.get_experiment_by_name("photos")
    assert experiment is not None
    (run,) = workplace.mlflow.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"


def test_a_prediction(workplace: Workplace, photos: Path, color_folder: Path) -> None:
    trained = workplace.run("train", "data=folder", f"data.path={color_folder}", *TINY)
    assert trained.code == 0, trained.output
    words = ("model=colors0", f"images={photos}", *ON_RAY)
    interrupt(workplace.start_command("predict", *words), "answer")


def test_an_audit(workplace: Workplace, photos: Path) -> None:
    network = ("backbone=test_efficientnet", "backbone.weights=none", "backbone.image_size=64", "accelerator=cpu")
    interrupt(workplace.start_command("audit", "data=folder", f"data.path={photos}", *network, *ON_RAY), "compute")


def test_the_members_of_an_ensemble(workplace: Workplace, color_folder: Path) -> None:
    own = ("members=2", "choose=all", "trainer.max_epochs=4000", "train.patience=null", *ON_RAY)
    given = {line.partition("=")[0]: line for line in ("data=folder", f"data.path={color_folder}", *TINY, *own)}
    process = workplace.start_command("ensemble", *given.values())
    for number in (1, 2):
        workplace.await_file(process, f"outputs/ensemble/*/members/{number}/checkpoints/last.ckpt", SECONDS)
    output = interrupt(process, "train_on_worker")
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    runs = workplace.mlflow.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"] * 3, output


def interrupt(process: subprocess.Popen[str], task: str) -> str:
    """Press Ctrl-C as soon as a worker runs a task; returns the output."""
    command, deadline = psutil.Process(process.pid), time.monotonic() + SECONDS
    while not any(f"ray::{task}" in " ".join(one.cmdline()) for one in children(command)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = children(command)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 130, output
    assert not psutil.wait_procs(workers, timeout=30)[1], "nothing is left of Ray"
    return output


def children(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for one in process.children(recursive=True):
        with suppress(psutil.Error):
            if one.cmdline():
                found.append(one)
    return found
