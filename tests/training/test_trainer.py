"""What is refused before images are read, and where a training is found to run."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from graftline.errors import UserError
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.freezing.rules import Nothing
from graftline.training.fit_directory import FitDirectory
from graftline.training.launch import check_launch
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.setup import TrainingSetup
from graftline.training.trainer import check_optimizer, check_trainer, make_execution
from graftline.training.trial import make_freeze_context

MakeSetup = Callable[..., TrainingSetup]

ON_CPU = Execution("cpu", "32-true", rank=0, world_size=1, cpu_only=True)  # as accelerator=cpu says


def _trainer(epochs: int = 5, **changes: Any) -> Callable[..., pl.Trainer]:
    return functools.partial(pl.Trainer, **{"accelerator": "cpu", "devices": 1, "max_epochs": epochs, **changes})


@pytest.mark.parametrize("epochs", [-1, 0])
def test_a_training_without_epochs_or_end_is_refused(epochs: int) -> None:
    with pytest.raises(UserError, match=r"Trainer\.max_epochs"):
        check_trainer(_trainer(epochs))


# each argument of Lightning's Trainer: a value that works, or one that is refused and a part of the sentence
ARGUMENTS: dict[str, tuple[Any, str | None]] = {
    "accelerator": ("cpu", None),
    "strategy": ("ddp_spawn", "auto, ddp or fsdp2"),
    "devices": ("auto", None),
    "num_nodes": (2, "several machines"),
    "precision": ("bf16-mixed", None),
    "logger": (True, "its own way"),
    "callbacks": ([], "its own way"),
    "fast_dev_run": (True, "Trainer.limit_train_batches"),
    "max_epochs": (1, None),
    "min_epochs": (2, None),
    "max_steps": (3, "max_epochs"),
    "min_steps": (3, "min_epochs"),
    "max_time": ("00:00:00:05", "max_epochs"),
    "limit_train_batches": (1, None),
    "limit_val_batches": (0.5, None),
    "limit_test_batches": (1, "no effect"),
    "limit_predict_batches": (1, "no effect"),
    "overfit_batches": (1, "limit_train_batches"),
    "val_check_interval": (0.5, "once, at its end"),
    "check_val_every_n_epoch": (5, "once, at its end"),
    "num_sanity_val_steps": (0, "its own way"),
    "log_every_n_steps": (1, "no effect"),
    "enable_checkpointing": (False, "its own way"),
    "enable_progress_bar": (False, "its own way"),
    "enable_model_summary": (False, "its own way"),
    "accumulate_grad_batches": (2, None),
    "gradient_clip_val": (0.5, None),
    "gradient_clip_algorithm": ("value", None),
    "deterministic": (True, None),
    "benchmark": (True, None),
    "inference_mode": (False, None),
    "use_distributed_sampler": (False, "its own way"),
    "profiler": ("simple", "no effect"),
    "detect_anomaly": (True, None),
    "barebones": (True, "its own way"),
    "plugins": ([], "its own way"),
    "sync_batchnorm": (True, "only normalize"),
    "reload_dataloaders_every_n_epochs": (1, "no effect"),
    "default_root_dir": ("elsewhere", "no effect"),
    "enable_autolog_hparams": (False, "no effect"),
    "model_registry": ("registry", "no effect"),
}


def test_the_table_has_each_argument_of_lightnings_trainer() -> None:
    assert set(ARGUMENTS) == set(inspect.signature(pl.Trainer).parameters)


@pytest.mark.parametrize("name", [name for name, (_, told) in ARGUMENTS.items() if told is not None])
def test_an_argument_that_a_fit_cannot_have_is_refused(name: str) -> None:
    value, told = ARGUMENTS[name]
    with pytest.raises(UserError, match=rf"^Trainer\.{name} .*{told}.*: leave it out"):
        check_trainer(functools.partial(pl.Trainer, **{"accelerator": "cpu", "devices": 2, name: value}))


@pytest.mark.parametrize("name", [name for name, (_, told) in ARGUMENTS.items() if told is None])
def test_an_argument_that_is_taken_works_to_the_end(name: str, make_setup: MakeSetup, tmp_path: Path) -> None:
    make_trainer = functools.partial(pl.Trainer, **{"accelerator": "cpu", "devices": 1, name: ARGUMENTS[name][0]})
    check_trainer(make_trainer)
    recipe = Recipe(batch_size=4, workers=0)
    setup = make_setup(make_trainer=make_trainer, recipe=recipe, features=Features(cache=False))
    plan = Nothing(epochs=2).decide(make_freeze_context(setup, FitDirectory(tmp_path))).plans[0]
    try:
        result = fit_phase(setup, plan, FitDirectory(tmp_path), show_progress=False)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(result.history.epochs) == plan.epochs
    assert {"val/loss", "val/accuracy"} <= set(result.history.best)


def test_a_share_of_too_few_batches_is_a_mistake(make_setup: MakeSetup, tmp_path: Path) -> None:
    make_trainer = functools.partial(pl.Trainer, accelerator="cpu", devices=1, limit_train_batches=0.01)
    setup = make_setup(make_trainer=make_trainer, features=Features(cache=False))
    plan = Nothing(epochs=2).decide(make_freeze_context(setup, FitDirectory(tmp_path))).plans[0]
    with pytest.raises(UserError, match="change the arguments of Trainer"):
        fit_phase(setup, plan, FitDirectory(tmp_path), show_progress=False)


@pytest.mark.parametrize(
    "changes", [{"limit_val_batches": 0}, {"limit_train_batches": 0.0}, {"accumulate_grad_batches": 0}]
)
def test_nothing_at_all_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"Trainer.{next(iter(changes))} is 0"):
        check_trainer(_trainer(1, **changes))


def test_gradients_are_not_turned_around() -> None:
    with pytest.raises(UserError, match=r"Trainer.gradient_clip_val is -1, it must be at least 0"):
        check_trainer(_trainer(1, gradient_clip_val=-1))


@pytest.mark.parametrize(("precision", "instead"), [("bf16-true", "bf16-mixed"), ("64-true", "32-true")])
def test_a_precision_that_changes_frozen_numbers_is_refused(precision: str, instead: str) -> None:
    with pytest.raises(UserError, match=instead):
        check_trainer(_trainer(1, precision=precision))
    check_trainer(_trainer(1, precision="bf16-mixed"))


def test_a_trainer_that_this_machine_cannot_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"Trainer\.accelerator=cpu"):
        check_trainer(functools.partial(pl.Trainer, accelerator="tpu"))
    with pytest.raises(UserError, match="arguments of AdamW"):
        check_optimizer(functools.partial(torch.optim.AdamW, lr=-1.0))
    check_optimizer(functools.partial(torch.optim.AdamW, lr=1.0))
    check_trainer(_trainer(1))


def test_the_execution_is_the_trainers() -> None:
    assert check_trainer(_trainer()) == ON_CPU
    assert not check_trainer(_trainer(accelerator="auto")).cpu_only
    assert check_trainer(_trainer(precision="bf16-mixed")).precision == "bf16-mixed"
    assert check_trainer(_trainer(devices=2, strategy="ddp")) == replace(ON_CPU, world_size=2)


def test_a_further_process_knows_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lightning starts it: with the variables of its launcher."""
    for name, value in (("LOCAL_RANK", "1"), ("NODE_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert make_execution(_trainer(devices=2, strategy="ddp")) == replace(ON_CPU, rank=1, world_size=2)


def test_torchrun_says_how_many_devices_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1"}
    for name, value in {**given, "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, value)
    assert check_trainer(_trainer()) == replace(ON_CPU, rank=3, world_size=4, num_nodes=2)
    with pytest.raises(
        UserError, match=r"Trainer\.devices is 4, but torchrun has started 2 .* give Trainer\.devices=2"
    ):
        check_trainer(_trainer(devices=4, strategy="ddp"))


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}, "put srun in front"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "neither torchrun nor srun"),
        ({"LOCAL_RANK": "1"}, "neither torchrun nor srun"),
    ],
)
def test_processes_that_would_wait_for_ever_are_refused(
    environment: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told):
        check_trainer(_trainer())


@pytest.mark.parametrize(("tasks", "on_nodes"), [(3, "2,1"), (3, "1,2"), (6, "2,1,3"), (7, "3,2(x2)")])
def test_uneven_nodes_are_refused(tasks: int, on_nodes: str) -> None:
    step = {"SLURM_NTASKS": str(tasks), "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    with pytest.raises(UserError, match="not the same number on each node"):
        check_launch({**step, "SLURM_TASKS_PER_NODE": on_nodes})


@pytest.mark.parametrize(
    "environment",
    [{"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}, {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, {"RANK": "0"}],
)
def test_one_process_by_itself_is_not(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert check_trainer(_trainer()).world_size == 1


def test_a_number_of_machines_is_not_the_trainers_to_say() -> None:
    with pytest.raises(UserError, match=r"Trainer\.num_nodes .*torchrun or SLURM's srun"):
        check_trainer(_trainer(num_nodes=2, strategy="ddp"))
