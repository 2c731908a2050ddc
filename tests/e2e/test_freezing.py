"""Freeze rules through whole trainings: what is decided, said, recorded, and kept by a resume."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file
from workplace import TINY, Workplace


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that stands for pretrained weights."""
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), file)
    return file


@pytest.fixture
def overrides(color_folder: Path, weights: Path) -> Callable[..., list[str]]:
    """Return what a tiny training from a weights file takes, with changes."""

    def changed(*changes: str) -> list[str]:
        own = [f"data.path={color_folder}", "data=folder", f"backbone.file={weights}", "backbone.weights=file"]
        lines = {line.partition("=")[0]: line for line in [*TINY, *own, *changes]}
        return [line for line in lines.values() if not line.endswith("=default")]

    return changed


def test_gradual_unfreezes_and_a_resume_keeps_what_was(
    workplace: Workplace, overrides: Callable[..., list[str]]
) -> None:
    rule = ["freeze=gradual", "freeze.head_epochs=2", "freeze.step_epochs=2", "freeze.step_groups=2", "features=cached"]
    rule += ["freeze.batchnorm=trained"]  # of few images they would be frozen
    many = ["freeze.until=0.0", "trainer.max_epochs=300", "train.patience=null", "optim.lr=default"]
    pattern = "outputs/train/*/checkpoints/phase-4/last.ckpt"
    workplace.interrupt(pattern, "train", *overrides(*rule, *many))
    (directory,) = workplace.root.glob("outputs/train/*")
    (run,) = workplace.mlflow.search_runs([e.experiment_id for e in workplace.mlflow.search_experiments()])

    resumed = workplace.run("train", f"train.resume={run.info.run_id}", "trainer.max_epochs=46")
    assert resumed.code == 0, resumed.output
    assert "Phase 4 of 4: nothing frozen, 40 epochs." in resumed.output
    assert "Phase 3" not in resumed.output, "what was unfrozen stays so"
    steps = [metric.step for metric in workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")]
    assert sorted(set(steps))[:6] == [3, 6, 9, 12, 15, 18], "36 images in batches of 16, counted over the phases"
    frozen = [
        len(json.loads((directory / "checkpoints" / folder / "freeze_check.json").read_text())["hashes"])
        for folder in ("", "phase-2", "phase-3", "phase-4")
    ]
    assert frozen == sorted(frozen, reverse=True)
    assert len(set(frozen)) == 4
    assert frozen[-1] == 0


def test_measured_says_draws_and_records_its_choice(workplace: Workplace, overrides: Callable[..., list[str]]) -> None:
    many = ["data.split.train=0.4", "data.split.validation=0.5", "data.split.test=0.1"]
    asked = overrides("freeze=measured", "freeze.depths=[0.5]", "features=cached", *many)
    ran = workplace.run("train", *asked)
    assert ran.code == 0, ran.output
    assert "against the head alone" in ran.output
    decision = json.loads((ran.directory / "freeze.json").read_text())
    assert len(decision["measurement"]["rows"]) == 2
    assert (ran.directory / "measurement.png").read_bytes().startswith(b"\x89PNG")
    run = workplace.mlflow.get_run(ran.result["run_id"])
    artifacts = {file.path for file in workplace.mlflow.list_artifacts(ran.result["run_id"], "freeze")}
    phases = {f"freeze/phase-{number}" for number in range(2, len(decision["plans"]) + 1)}
    assert artifacts == {"freeze/freeze.json", "freeze/measurement.png", "freeze/freeze_check.json", *phases}
    assert run.data.tags["graftline.freeze"] == ran.result["freeze"]
    assert not (ran.directory / "checkpoints" / "trial").exists()
    freeze_check = json.loads((ran.directory / "checkpoints" / "freeze_check.json").read_text())
    assert set(freeze_check["trainable"]) == set(decision["plans"][0]["trainable"])
    history = workplace.mlflow.get_metric_history(ran.result["run_id"], "val/loss")
    assert len(history) == ran.result["epochs"], "the epochs of a trial that became a phase are in the run"
    again = workplace.run("train", *asked)
    assert again.code == 0, again.output
    assert again.result["metrics"] == ran.result["metrics"]


def test_auto_trains_all_of_a_random_network(workplace: Workplace, overrides: Callable[..., list[str]]) -> None:
    random = ["freeze=auto", "backbone.weights=none", "backbone.file=default", "features=auto", "optim.lr=default"]
    ran = workplace.run("train", *overrides(*random, "train.layer_decay=0.5"))
    assert ran.code == 0, ran.output
    assert "random" in ran.result["freeze"]
    run = workplace.mlflow.get_run(ran.result["run_id"])
    assert run.data.metrics["freeze/frozen_parameters"] == 0
    rates = {name: value for name, value in run.data.metrics.items() if name.startswith("lr/")}
    warm_up = rates["lr/head"] / 0.001  # what the schedule makes of the rule's own rate at the first step
    assert 0 < warm_up <= 1
    assert rates["lr/stem"] == pytest.approx(0.001 * 0.5**6 * warm_up)


def test_a_rule_that_fits_nothing_leaves_no_run(workplace: Workplace, overrides: Callable[..., list[str]]) -> None:
    ran = workplace.run("train", *overrides("freeze=names", "freeze.frozen=[conv_stam.*]", "features.views=3"))
    assert ran.code == 1
    assert "conv_stem" in ran.output, "what it may mean"
    assert "features.views=3 is for cached activations" in ran.output
    experiments = [experiment.experiment_id for experiment in workplace.mlflow.search_experiments()]
    assert not workplace.mlflow.search_runs(experiments)


def test_any_depth_and_any_names_train(workplace: Workplace, overrides: Callable[..., list[str]]) -> None:
    """One epoch each, in one run of several, with the activation cache at each boundary."""
    lines = overrides("freeze=first_stages", "freeze.number=1,5", "features=cached", "trainer.max_epochs=1")
    ran = workplace.run("train", *lines)
    assert ran.code == 0, ran.output
    assert ran.output.count("only the tail runs at each step") == 2
    trained = []
    for number in range(2):
        content = json.loads((ran.directory / str(number) / "checkpoints" / "freeze_check.json").read_text())
        trained.append(content["trained_parameters"])
    assert trained == sorted(trained, reverse=True)
    names = overrides("freeze=names", "freeze.frozen=[conv_stem.*,bn1.*]", "features=cached", "trainer.max_epochs=1")
    ran = workplace.run("train", *names)
    assert ran.code == 0, ran.output
    freeze_check = json.loads((ran.directory / "checkpoints" / "freeze_check.json").read_text())
    assert not [name for name in freeze_check["trainable"] if name.startswith(("conv_stem.", "bn1."))]
