"""How this process was started as one of several: by torchrun, by SLURM's srun, or by Ray.

What the variables mean: https://docs.pytorch.org/docs/stable/elastic/run.html and
https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES. Importing this module imports nothing heavy.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from graftline.errors import UserError

T = TypeVar("T")
Launcher = Literal["torchrun", "srun", "Ray"]
RAY = "GRAFTLINE_RAY"  # environment variable that says that Ray has started a process, with torchrun's names


@dataclass(frozen=True)
class Launch:
    """Which of how many processes this one is, all of which were started with the same command.

    Attributes:
        launcher: what started them.
        rank: number of this process among all, from 0.
        world_size: number of processes.
        local_rank: number of this process on its node, from 0.
        local_world_size: number of processes on each node.
    """

    launcher: Launcher
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.world_size // self.local_world_size

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Launch | None":
        """Return what started this process as one of several; None if it is by itself.

        >>> slurm = {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
        >>> Launch.of({**slurm, "SLURM_TASKS_PER_NODE": "2(x2)"})
        Launch(launcher='srun', rank=3, world_size=4, local_rank=1, local_world_size=2)
        """
        if "TORCHELASTIC_RUN_ID" in environment or RAY in environment:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
            return cls("Ray" if RAY in environment else "torchrun", *(int(environment[name]) for name in names))
        if is_slurm_job(environment) and "SLURM_STEP_ID" in environment:  # without: the job's own script
            tasks_per_node = re.match(r"\d+", environment.get("SLURM_TASKS_PER_NODE", ""))
            local = tasks_per_node[0] if tasks_per_node is not None else environment["SLURM_NTASKS"]
            rank, world_size = int(environment["SLURM_PROCID"]), int(environment["SLURM_NTASKS"])
            return cls("srun", rank, world_size, int(environment["SLURM_LOCALID"]), int(local))
        return None


def is_slurm_job(environment: Mapping[str, str]) -> bool:
    """Tell whether this is a job of SLURM with several tasks, which are not there for a person to type in."""
    is_interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")  # as in Lightning's SLURMEnvironment
    return environment.get("SLURM_NTASKS", "1") != "1" and not is_interactive


def check_launch(environment: Mapping[str, str]) -> None:
    """Make sure that a training begins with the processes that it is to have.

    Raises:
        UserError: it would wait for processes that never come, or others would train the same beside it.
    """
    launch = Launch.of(environment)
    if launch is None and is_slurm_job(environment):
        raise UserError(
            f"This job of SLURM has {environment['SLURM_NTASKS']} tasks, but graftline was started without srun, "
            "and so once: put srun in front of the command."
        )
    if launch is None and (environment.get("WORLD_SIZE", "1") != "1" or "LOCAL_RANK" in environment):
        raise UserError(
            "Something has started this process as one of several (WORLD_SIZE or LOCAL_RANK is set), but neither "
            "torchrun nor srun has: use one of them, or start a single process."
        )
    is_uneven = launch is not None and launch.num_nodes * launch.local_world_size != launch.world_size
    if launch is not None and launch.launcher == "srun":  # such as 2(x3),1
        is_uneven |= "," in environment.get("SLURM_TASKS_PER_NODE", "")
    if launch is not None and is_uneven:
        raise UserError(
            f"{launch.launcher} has started {launch.world_size} processes, not the same number on each node: "
            "start as many on each, for SLURM with --ntasks-per-node."
        )


def current_launch() -> Launch | None:
    """Return what started this process as one of several; None if it is by itself, or if Lightning has started it."""
    return Launch.of(os.environ)


def with_launch(make_trainer: Callable[..., T], launch: Launch | None) -> Callable[..., T]:
    """Return a trainer that trains in the processes that were started, whose number it does not decide.

    Args:
        make_trainer: ``functools.partial`` of ``pytorch_lightning.Trainer``.
        launch: how they were started; None: the trainer stays as it is.

    Raises:
        UserError: it was told another number.
    """
    if launch is None:
        return make_trainer
    assert isinstance(make_trainer, functools.partial)
    given, processes = make_trainer.keywords, launch.local_world_size
    if (devices := given.get("devices", 1)) not in (1, "auto", -1, "-1", processes):
        raise UserError(
            f"Trainer.devices is {devices}, but {launch.launcher} has started {processes} processes on each node, each "
            f"of which has one device: give Trainer.devices={processes}, or start as many processes."
        )
    settings: dict[str, Any] = {"devices": processes, "num_nodes": launch.num_nodes, "strategy": "auto"}
    if launch.world_size > 1:
        strategy = given.get("strategy", "auto")
        settings["strategy"] = "ddp" if strategy == "auto" else strategy
    return functools.partial(make_trainer.func, *make_trainer.args, **{**given, **settings})  # one partial, not two


def main_address(launch: Launch) -> tuple[str, int]:
    """Return host and port at which the processes find each other: torchrun's, or what Lightning takes under SLURM."""
    if launch.launcher == "srun":
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(launch.local_world_size))  # Lightning wants to be told
        environment = SLURMEnvironment()
        return environment.main_address, environment.main_port
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
