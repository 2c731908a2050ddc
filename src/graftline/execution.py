"""Where a run runs: on which device, in what precision, as which of how many processes, with how many threads.

It is made once, from the trainer's configuration (`graftline.training.trainer.check_trainer`) or by `Execution.local`,
and handed down to all that computes: engine, forecast, predictor and loaders ask it, and none of them asks torch.
Importing this module imports nothing heavy: the predictor runs in containers without torch.
"""

import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graftline.errors import UserError

if TYPE_CHECKING:
    import torch

Accelerator = Literal["auto", "cpu", "gpu"]
CORES = "GRAFTLINE_CORES"  # environment variable: how many cores a task has, which Ray counts but does not enforce


def available_cores() -> int:
    """Return how many cores this process may use, which ``taskset``, a container or a task's slot on Ray can limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(cores, cpu_quota(), float(os.environ.get(CORES, math.inf))))


@cache
def cpu_quota(root: Path = Path("/")) -> float:
    """Return the cores of which control groups give this process the time, as ``docker run --cpus`` sets it.

    Args:
        root: of the file system.

    Returns:
        Cores, in parts too; infinity where nothing is set, or there are no control groups.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    groups = root / "sys/fs/cgroup"
    quotas = [math.inf]
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "" or "cpu" in controllers.split(","):
            mount = groups / "cpu" if controllers else groups  # of version 1, and of version 2
            place = mount / path.lstrip("/")  # which a container may not see: then it sees its own at the mount
            quotas += [_quota(folder) for folder in (place, *place.parents) if folder.is_relative_to(mount)]
    return min(quotas)


def _quota(folder: Path) -> float:
    """Return that of one control group."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # of version 2, and of version 1
        try:
            texts = [(folder / name).read_text(encoding="utf-8") for name in names]
            quota, period = map(int, " ".join(texts).split())
        except (OSError, ValueError):  # it is not there, or "max"
            continue
        if quota > 0:
            return quota / period
    return math.inf


@dataclass(frozen=True)
class Execution:
    """Where a run runs.

    Attributes:
        device: torch's name of this process's device: ``cpu``, ``cuda:0``, ``mps``.
        precision: Lightning's name of the precision that a fit computes in, such as ``32-true`` or ``bf16-mixed``.
        rank: number of this process, from 0.
        world_size: number of processes that train together.
        num_nodes: number of machines on which they do, as many on each.
        threads: how many threads of this process should compute at a time; None: one per core.
        cpu_only: whether no GPU is to be used anywhere, even where there is one.
    """

    device: str = "cpu"
    precision: str = "32-true"
    rank: int = 0
    world_size: int = 1
    num_nodes: int = 1
    threads: int | None = None
    cpu_only: bool = False

    @classmethod
    def local(cls, accelerator: Accelerator = "auto", threads: int | None = None) -> "Execution":
        """Return that of one process on this machine.

        Args:
            accelerator: ``cpu``, ``gpu``, or ``auto``: a GPU if there is one.
            threads: None: one per core.

        Raises:
            UserError: a GPU is asked for and there is none.
        """
        if accelerator == "cpu":
            return cls(threads=threads, cpu_only=True)
        import torch

        if torch.cuda.is_available():
            return cls("cuda:0", threads=threads)
        if torch.mps.is_available():
            return cls("mps", threads=threads)
        if accelerator == "gpu":
            raise UserError("There is no GPU here that torch can use: take accelerator=cpu or auto.")
        return cls(threads=threads)

    @classmethod
    def onnx(cls, accelerator: Accelerator = "auto") -> "Execution":
        """Return that of ONNX Runtime in this process; torch is imported only where there may be a GPU for it.

        Raises:
            UserError: a GPU is asked for, and there is none, or ONNX Runtime was not built for one.
        """
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            return cls.local(accelerator)
        if accelerator == "gpu":
            raise UserError(
                "ONNX Runtime was built without GPUs here: take accelerator=cpu or auto, or install onnxruntime-gpu in "
                "its place."
            )
        return cls()

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a GPU that CUDA or ROCm runs: the only kind with pinned memory and float16 autocast."""
        return self.device.startswith("cuda")

    @property
    def local_world_size(self) -> int:
        """How many of the processes that train together share this machine."""
        return self.world_size // self.num_nodes

    @property
    def num_threads(self) -> int:
        """How many threads of this process should compute at a time."""
        return self.threads if self.threads is not None else available_cores()

    @property
    def torch_device(self) -> "torch.device":
        """The device as torch's own object."""
        import torch

        return torch.device(self.device)
