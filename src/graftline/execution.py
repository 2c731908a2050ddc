"""Where a run runs: on which device, in what precision, as which of how many processes, with how many threads.

It is made once, from the trainer's configuration (`graftline.training.trainer.check_trainer`) or by `Execution.local`,
and handed down to all that computes: engine, forecast, predictor and loaders ask it, and none of them asks torch.
Importing this module imports nothing heavy: the predictor runs in containers without torch.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graftline.errors import UserError

if TYPE_CHECKING:
    import torch

Accelerator = Literal["auto", "cpu", "gpu"]


def available_cores() -> int:
    """Return how many cores this process may use, which a container or ``taskset`` can limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Execution:
    """Where a run runs.

    Attributes:
        device: torch's name of this process's device: ``cpu``, ``cuda:0``, ``mps``.
        precision: Lightning's name of the precision that a fit computes in, such as ``32-true`` or ``bf16-mixed``.
        rank: number of this process, from 0.
        world_size: number of processes that train together.
        threads: how many threads of this process should compute at a time; None: one per core.
    """

    device: str = "cpu"
    precision: str = "32-true"
    rank: int = 0
    world_size: int = 1
    threads: int | None = None

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
            return cls(threads=threads)
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
    def num_threads(self) -> int:
        """How many threads of this process should compute at a time."""
        return self.threads if self.threads is not None else available_cores()

    @property
    def torch_device(self) -> "torch.device":
        """The device as torch's own object."""
        import torch

        return torch.device(self.device)
