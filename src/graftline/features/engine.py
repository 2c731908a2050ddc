"""The trunk at full speed: exported once to ONNX and run by ONNX Runtime on a CPU, or by torch on a GPU.

Letters: B batch, C channels, H height, W width, F numbers per image that the trunk gives.
"""

import copy
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from graftline.backbones.onnx import export_onnx, largest_difference, open_session
from graftline.errors import UserError, first_line
from graftline.execution import Execution
from graftline.files import atomic_file, sha256_file
from graftline.locks import Lock

logger = logging.getLogger(__name__)

MAX_RELATIVE_DIFFERENCE = 1e-3  # of the engine from torch in float32, before we go back to that

# Images per call. On a CPU what a small batch needs stays in the caches: EfficientNet-Lite0 at 224 took 14 ms of one
# core's time per image with 8, 15 ms with 16, 23 ms with 32 and both cores at once.
CPU_BATCH, GPU_BATCH = 8, 128
MAX_DECODERS = 16  # threads that feed a GPU

Batches = Iterable[tuple[Any, Sequence[int]]]  # what decodes images, and which rows of its request a batch has
RunTrunk = Callable[[Tensor], np.ndarray]  # images (B, C, H, W) float32 → activations (B, F) float32
HowOnGpu = Literal["in float32", "in float16", "compiled"]  # each faster than the one before


@dataclass(frozen=True)
class Engine:
    """Runs the trunk.

    Attributes:
        run: images (B, C, H, W) float32 → activations (B, F) float32.
        runs_on: in words.
        callers: how many threads should call ``run`` at a time.
        batch_size: B at which it is fastest.
        is_exported: whether it is ONNX Runtime on the exported file.
        run_all: batches of images → the activations of each, in order; None: ``callers`` threads call ``run``.
        how: a GPU runs it; None where none does.
        end: gives back what it holds, such as GPUs of a cluster; it may be run again, which takes them again.
    """

    run: RunTrunk
    runs_on: str
    callers: int
    batch_size: int
    is_exported: bool = False
    run_all: Callable[[Batches], Iterator[np.ndarray]] | None = None
    how: HowOnGpu | None = None
    end: Callable[[], None] = lambda: None


def make_engine(trunk: nn.Module, file: Path, images: Tensor, execution: Execution) -> Engine:
    """Prepare the trunk for the frozen pass.

    On a CPU each of our threads decodes a few images and runs the trunk on them with this one core: nothing is
    sent between processes and no core waits for another within a layer. Decoding included, that took less of the
    cores' time than ONNX Runtime alone, with all cores on each layer of a batch of 32.

    Args:
        trunk: on the CPU; put into eval mode here.
        file: where the ONNX export lies, or will lie; beside it, its checksum.
        images: the first real ones (B, C, H, W), on which it is compared with torch.
        execution: on which device, and with how many threads.
    """
    trunk.eval()
    if execution.is_cuda:
        return gpu_engine(trunk, images, execution)
    try:
        session = _open(trunk, file, images)
        _check(trunk, session, images)
    except OSError:
        raise  # a full or read-only disk is no reason to run slowly
    except Exception as error:  # whatever an exporter or ONNX Runtime raises on operations that it does not know
        return _torch_engine(trunk, f"torch (no sound ONNX export: {first_line(error)})")

    def run(images: Tensor) -> np.ndarray:
        activations: np.ndarray = session.run(None, {"image": images.numpy()})[0]
        return activations

    return Engine(run, "ONNX Runtime", execution.num_threads, CPU_BATCH, is_exported=True)


def _check(trunk: nn.Module, session: onnxruntime.InferenceSession, images: Tensor) -> None:
    """Raise an ArithmeticError where ONNX Runtime gives others than torch."""
    difference = largest_difference(trunk, session, images)
    if not difference <= MAX_RELATIVE_DIFFERENCE:  # also catches NaN
        raise ArithmeticError(f"ONNX Runtime differs by {difference:.1e}, more than {MAX_RELATIVE_DIFFERENCE}")


def _open(trunk: nn.Module, file: Path, images: Tensor) -> onnxruntime.InferenceSession:
    """Open the exported trunk; it is exported if it is not there, or anew if it is not what was written."""
    checksum = file.with_suffix(".sha256")
    with Lock(file.with_suffix(".lock"), shared=False, on_wait=lambda: None):  # one process exports for all
        if not (file.exists() and checksum.exists() and checksum.read_bytes() == sha256_file(file).encode()):
            if file.exists():
                logger.warning(f"{file} is damaged: the frozen network is exported again.")
            with atomic_file(file) as temporary:
                _, channels, *size = images.shape
                export_onnx(
                    trunk,
                    temporary,
                    (size[0], size[1]),
                    channels,
                    outputs=["activations"],
                    check=lambda exported: _check(trunk, open_session(exported, threads=1), images),
                )
            with atomic_file(checksum) as temporary:
                temporary.write_text(sha256_file(file), encoding="ascii")
        return open_session(file, threads=1)


def _torch_engine(trunk: nn.Module, runs_on: str) -> Engine:
    trunk.to(memory_format=torch.channels_last)
    lock = threading.Lock()  # torch itself uses all cores

    def run(images: Tensor) -> np.ndarray:
        with lock, torch.inference_mode():
            activations: np.ndarray = trunk(images.contiguous(memory_format=torch.channels_last)).numpy()
        return activations

    return Engine(run, runs_on, 2, 4 * CPU_BATCH)


def gpu_engine(trunk: nn.Module, images: Tensor, execution: Execution, how: HowOnGpu | None = None) -> Engine:
    """Return torch on the GPU: in half precision where that is close enough to float32, and compiled where that works.

    It is compiled for one size of batches, as each further one would take another minute.

    Args:
        trunk: on the CPU, in eval mode.
        images: the first real ones (B, C, H, W), on which the ways to run it are compared.
        execution: on which device, and how many threads decode.
        how: as another GPU runs it; None: in the fastest way that is sound.

    Raises:
        UserError: it cannot be run so here.
    """
    device = execution.torch_device
    trunk = copy.deepcopy(trunk).to(device).to(memory_format=torch.channels_last)
    found: HowOnGpu = "in float32"
    run = _on_gpu(trunk, device)
    expected = run(images)
    why = ""
    for faster, name in _faster_ways(trunk, device, how):
        try:
            difference = float(np.abs(faster(images) - expected).max() / max(np.abs(expected).max(), 1e-12))
        except Exception as error:  # whatever a compiler raises on code that it cannot compile, or where it is missing
            why = f" ({first_line(error)})"
            break
        if not difference <= MAX_RELATIVE_DIFFERENCE:  # also catches NaN
            break
        run, found = faster, name
    if how not in (None, found):
        raise UserError(
            f"The GPU of {socket.gethostname()} runs the frozen network {found}, but cannot run it {how}, as another "
            f"one does{why}: use GPUs of one kind, and the same software on all nodes."
        )
    callers = min(MAX_DECODERS, execution.num_threads)
    return Engine(run, f"torch on the GPU, {found}", callers, GPU_BATCH, how=found)


def _faster_ways(trunk: nn.Module, device: torch.device, how: HowOnGpu | None) -> Iterator[tuple[RunTrunk, HowOnGpu]]:
    """Yield what runs a trunk faster than in float32, up to one way; what compiles takes seconds to import."""
    if how != "in float32":
        yield _on_gpu(trunk, device, half=True), "in float16"
    if how in (None, "compiled"):
        compiled = torch.compile(trunk, dynamic=False)
        yield _on_gpu(compiled, device, half=True, multiple=GPU_BATCH), "compiled"


def _on_gpu(
    trunk: Callable[[Tensor], Tensor], device: torch.device, *, half: bool = False, multiple: int = 1
) -> RunTrunk:
    """Return what runs a trunk on a device.

    Args:
        trunk: on the device.
        device: the GPU.
        half: whether it computes in float16 where that is usual, else in float32.
        multiple: images are filled up with black ones to a multiple of so many.
    """
    lock = threading.Lock()  # the others decode meanwhile

    def run(images: Tensor) -> np.ndarray:
        count = len(images)
        if (missing := -count % multiple) > 0:
            images = functional.pad(images, (0, 0) * 3 + (0, missing))
        if device.type == "cuda":
            images = images.pin_memory()
        with (
            lock,
            torch.inference_mode(),
            torch.autocast(device.type, torch.float16, enabled=half),
            _no_tf32(),
        ):
            batch = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            activations: np.ndarray = trunk(batch)[:count].float().cpu().numpy()
        return activations

    return run


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Let convolutions in float32 be what they say: cuDNN keeps ten bits of each number unless it is told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
