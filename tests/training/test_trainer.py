"""What is refused before images are read, and where a training is found to run."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from graftline.errors import UserError
from graftline.execution import Execution
from graftline.training.trainer import check_optimizer, check_trainer, make_execution


def _trainer(epochs: int = 5, **changes: Any) -> Callable[..., pl.Trainer]:
    return functools.partial(pl.Trainer, **{"accelerator": "cpu", "devices": 1, "max_epochs": epochs, **changes})


@pytest.mark.parametrize("epochs", [-1, 0])
def test_a_training_without_epochs_or_end_is_refused(epochs: int) -> None:
    with pytest.raises(UserError, match=r"Trainer\.max_epochs"):
        check_trainer(_trainer(epochs))


@pytest.mark.parametrize(
    "changes", [{"logger": True}, {"callbacks": []}, {"fast_dev_run": True}, {"limit_val_batches": 0}]
)
def test_what_a_fit_needs_its_own_way_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="leave"):
        check_trainer(_trainer(1, **changes))


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
    assert check_trainer(_trainer()) == Execution("cpu", "32-true", rank=0, world_size=1)
    assert check_trainer(_trainer(precision="bf16-mixed")).precision == "bf16-mixed"
    assert check_trainer(_trainer(devices=2, strategy="ddp")) == Execution("cpu", "32-true", rank=0, world_size=2)


def test_a_further_process_knows_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lightning starts it: with the variables of its launcher."""
    for name, value in (("LOCAL_RANK", "1"), ("NODE_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert make_execution(_trainer(devices=2, strategy="ddp")) == Execution("cpu", "32-true", rank=1, world_size=2)


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "torchrun"),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}, "srun"),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1"}, "srun"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "a launcher"),
        ({"LOCAL_RANK": "1"}, "a launcher"),
    ],
)
def test_processes_that_something_else_started_are_refused(
    environment: dict[str, str], launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"started by .*{launcher}.* until a later version"):
        check_trainer(_trainer())


@pytest.mark.parametrize(
    "environment",
    [{"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}, {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, {"RANK": "0"}],
)
def test_one_process_by_itself_is_not(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert check_trainer(_trainer()).world_size == 1


def test_several_machines_are_refused() -> None:
    with pytest.raises(UserError, match=r"Trainer\.num_nodes is 2.* until a later version"):
        check_trainer(_trainer(num_nodes=2, strategy="ddp"))
