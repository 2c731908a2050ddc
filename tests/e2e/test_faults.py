"""What becomes of mistakes, faults and Ctrl-C."""

import re
import shutil
from pathlib import Path

import pytest
import timm
from PIL import Image
from safetensors.torch import save_file
from workplace import TINY, Workplace


def data(folder: Path) -> tuple[str, str]:
    return ("data=folder", f"data.path={folder}")


def only_run(place: Workplace) -> tuple[str, str]:
    """Return id and status of the only run."""
    experiments = [experiment.experiment_id for experiment in place.mlflow.search_experiments()]
    (run,) = place.mlflow.search_runs(experiments)
    return run.info.run_id, run.info.status


def test_ctrl_c_kills_the_run_and_resume_finishes_it(workplace: Workplace, color_folder: Path) -> None:
    arguments = [*data(color_folder), *TINY, "trainer.max_epochs=400", "train.patience=null"]
    output = workplace.interrupt("outputs/train/*/checkpoints/last.ckpt", "train", *arguments)
    assert "Traceback" not in output
    run_id, status = only_run(workplace)
    assert status == "KILLED"
    epochs_before = len(workplace.mlflow.get_metric_history(run_id, "val/loss"))
    assert epochs_before >= 1

    (directory,) = workplace.root.glob("outputs/train/*")
    epochs = epochs_before + 2
    resumed = workplace.run("train", f"train.resume={run_id}", f"trainer.max_epochs={epochs}")
    assert resumed.code == 0, resumed.output
    assert resumed.directory == directory, "one run, one output directory"
    assert only_run(workplace) == (run_id, "FINISHED")
    # Ctrl-C between an epoch's metrics and its checkpoint has that epoch done, and told, once more
    steps = sorted({metric.step for metric in workplace.mlflow.get_metric_history(run_id, "val/loss")})
    assert steps == [3 * epoch for epoch in range(1, epochs + 1)], "36 images in batches of 16: the count goes on"

    finished = workplace.run("train", f"train.resume={run_id}")
    assert finished.code == 1
    assert "more with trainer.max_epochs" in finished.output
    other = workplace.run("train", f"train.resume={run_id}", "optim.lr=1.0", "trainer.max_epochs=999")
    assert other.code == 1
    assert "optim.lr=1.0 would change them" in other.output
    assert only_run(workplace) == (run_id, "FINISHED")


KILLED = {  # what is seen last of a run that is killed → what it trains
    "checkpoints/freeze_check.json": ["freeze=all_but_head"],  # before its first epoch
    "checkpoints/trial": [
        "freeze=measured",
        "freeze.depths=[0.5]",
        "data.split.train=0.4",
        "data.split.validation=0.5",
    ],
    "checkpoints/phase.json": [
        "freeze=gradual",
        "freeze.head_epochs=1",
        "freeze.step_epochs=1",
        "freeze.step_groups=3",
        "freeze.until=0.0",
    ],
}


@pytest.mark.parametrize("seen", KILLED)
def test_a_run_that_is_killed_at_any_time_goes_on(
    seen: str, workplace: Workplace, color_folder: Path, tmp_path: Path
) -> None:
    """What was said before the first epoch holds: train.resume=ID goes on with it, to the numbers it would have had."""
    save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.safetensors")
    weights = ["backbone.weights=file", f"backbone.file={tmp_path / 'weights.safetensors'}"]
    own = [*weights, *KILLED[seen], "features=cached", "trainer.max_epochs=3", "backbone.drop_rate=0.3"]
    lines = {line.partition("=")[0]: line for line in (*TINY, *data(color_folder), *own)}
    output = workplace.kill(f"outputs/train/*/{seen}", "train", *lines.values())
    run_id, status = only_run(workplace)
    assert f"graftline train train.resume={run_id} goes on with it" in output
    assert status == "RUNNING", "it had no chance to say otherwise"
    (directory,) = workplace.root.glob("outputs/train/*")

    resumed = workplace.run("train", f"train.resume={run_id}")
    assert resumed.code == 0, resumed.output
    assert resumed.directory == directory, "one run, one output directory"
    assert only_run(workplace) == (run_id, "FINISHED")
    assert not (directory / "checkpoints" / "trial").exists()
    whole = workplace.run("train", *lines.values())
    assert whole.code == 0, whole.output
    assert resumed.result["metrics"] == whole.result["metrics"]
    assert losses(workplace, run_id) == losses(workplace, whole.result["run_id"])


def losses(place: Workplace, run_id: str) -> dict[int, float]:
    """Return the validation loss by step."""
    return {metric.step: metric.value for metric in place.mlflow.get_metric_history(run_id, "val/loss")}


def test_other_images_are_another_run(workplace: Workplace, color_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(color_folder, tmp_path / "images")
    arguments = [*data(tmp_path / "images"), *TINY, "trainer.max_epochs=400", "train.patience=null"]
    workplace.interrupt("outputs/train/*/checkpoints/last.ckpt", "train", *arguments)
    run_id, status = only_run(workplace)
    assert status == "KILLED"
    Image.effect_noise((40, 40), 50).convert("RGB").save(tmp_path / "images" / "red" / "new.png")
    ran = workplace.run("train", f"train.resume={run_id}")
    assert ran.code == 1
    assert re.search(r"The images are now dataset version \w+, but the run began with version \w+", ran.output)
    assert only_run(workplace) == (run_id, "KILLED")


@pytest.mark.parametrize(
    ("environment", "overrides", "told"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}, (), "put srun in front"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, (), "neither torchrun nor srun"),
        ({}, ("trainer.num_nodes=2", "trainer.strategy=ddp"), "num_nodes"),
    ],
)
def test_processes_that_would_wait_for_ever_are_refused(
    environment: dict[str, str],
    overrides: tuple[str, ...],
    told: str,
    workplace: Workplace,
    color_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ran = workplace.run("train", *data(color_folder), *TINY, *overrides)
    assert ran.code == 1
    assert told in ran.output
    assert not (workplace.root / "data").exists(), "before images are read"


def test_a_fault_marks_the_run_failed(workplace: Workplace, color_folder: Path) -> None:
    ran = workplace.run(
        "train", *data(color_folder), *TINY, "optim=sgd", "optim.lr=1e30", "trainer.gradient_clip_val=null"
    )
    assert ran.code == 1
    assert "lower optim.lr" in ran.output
    assert "Traceback" not in ran.output
    assert only_run(workplace)[1] == "FAILED"


def test_mistakes_stop_before_anything_is_read(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path)
    ran = workplace.run("train", "backbone=resnet-18", "trainer.max_epoch=1")
    assert ran.code == 1
    assert "2 mistakes" in ran.output
    assert not list(workplace.root.iterdir())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data=folder", "data.path=nowhere"], r"nowhere"),
        (["backbone=resnet18", "freeze=none"], r"backbone\.weights=none"),
        (["backbone=test_efficientnet", "backbone.weights=none", "freeze=all_but_head"], r"freeze=none"),
        (["trainer=gpu"], r"GPU|gpu|CUDA"),
    ],
)
def test_one_clear_sentence(workplace: Workplace, overrides: list[str], sentence: str) -> None:
    ran = workplace.run("train", *overrides)
    assert ran.code == 1, ran.output
    assert "Traceback" not in ran.output
    last = [line for line in ran.output.splitlines() if line.strip()][-1]
    assert re.search(sentence, last), ran.output


def test_several_values_are_several_runs_under_one_parent(workplace: Workplace, color_folder: Path) -> None:
    ran = workplace.run("train", *data(color_folder), *TINY, "trainer.max_epochs=1", "seed=0,1")
    assert ran.code == 0, ran.output
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    runs = workplace.mlflow.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.data.params["seed"] for run in children} == {"0", "1"}
    assert {run.info.run_name for run in children} == {"test_efficientnet seed=0", "test_efficientnet seed=1"}
    assert parents[0].info.run_name == "2 runs: seed"
    note = parents[0].data.tags["mlflow.note.content"]
    assert note.startswith("**2 runs**\n\n| run | what differs | test accuracy | 95 % interval |")
    for number in ("0", "1"):
        (child,) = [run for run in children if run.data.params["seed"] == number]
        right = f"{100 * child.data.metrics['test/accuracy']:.1f} %"
        assert f"| {number} | seed={number} | {right} | " in note
    assert {run.info.status for run in runs} == {"FINISHED"}
    (directory,) = workplace.root.glob("outputs/train/*")
    assert {"0", "1"} <= {path.name for path in directory.iterdir()}
    log = (directory / "log.txt").read_text()
    assert "Run 1: " in log
    assert "++" not in log, "a sign of Hydra's"
    assert "train loss" not in log, "which each run's own log has"
    table = log[log.rindex("2 runs") :].splitlines()
    assert [line.split()[:2] for line in table[2:4]] == [["0", "seed=0"], ["1", "seed=1"]]
