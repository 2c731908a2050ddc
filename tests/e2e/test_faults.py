"""What becomes of mistakes, faults and Ctrl-C."""

import re
from pathlib import Path

import pytest
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


def test_a_fault_marks_the_run_failed(workplace: Workplace, color_folder: Path) -> None:
    ran = workplace.run(
        "train", *data(color_folder), *TINY, "optim=sgd", "optim.lr=1e30", "trainer.gradient_clip_val=null"
    )
    assert ran.code == 1
    assert "lower the learning rate" in ran.output
    assert "Traceback" not in ran.output
    assert only_run(workplace)[1] == "FAILED"


def test_mistakes_stop_before_anything_is_read(workplace: Workplace) -> None:
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
    assert {run.info.status for run in runs} == {"FINISHED"}
    (directory,) = workplace.root.glob("outputs/train/*")
    assert {"0", "1"} <= {path.name for path in directory.iterdir()}
    table = ran.output[ran.output.rindex("2 runs") :].splitlines()
    assert [line.split()[:2] for line in table[2:4]] == [["0", "seed=0"], ["1", "seed=1"]]
