"""How long a training will take, on cached activations and live: the two are timed on a few images and added up.

Letters: B batch, C channels, H height, W width.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graftline.features.cut import Cut
from graftline.freezing.plan import set_frozen_eval

BATCH = 8  # images that are timed
REPETITIONS = 3  # of which the fastest counts
# What is not timed, since it would take as long as it saves: the engine runs the frozen network at least so many times
# as fast as torch does on a CPU (benchmarks/speed.py); exporting it; reading from and writing to a disk.
ENGINE_SPEED_UP = 2.5
EXPORT_SECONDS = 3.0
DISK_BYTES_PER_SECOND = 5e8


@dataclass(frozen=True)
class Work:
    """How much there is to do.

    Attributes:
        train: images of the training split.
        validation: images of the validation split.
        epochs: at most.
        to_compute: images, all views of them counted, whose activations are not there yet.
        cached_bytes: on disk, all views and both splits.
        in_memory: whether the activations are read from disk once only.
    """

    train: int
    validation: int
    epochs: int
    to_compute: int
    cached_bytes: float
    in_memory: bool


@dataclass(frozen=True)
class Forecast:
    """Predicted seconds of a training."""

    cached: float
    live: float

    def sentence(self) -> str:
        """Return it in words.

        >>> Forecast(12.4, 310.0).sentence()
        'predicted 12 s on cached activations, 310 s live'
        """
        return f"predicted {self.cached:,.0f} s on cached activations, {self.live:,.0f} s live"


def forecast(parts: Cut, work: Work, image_size: tuple[int, int], channels: int) -> Forecast:
    """Time trunk and tail on a few images and predict both ways of training.

    Args:
        parts: on the CPU; copies of them are timed, so that they, and the random numbers, stay as they are.
        work: what there is to do.
        image_size: (H, W) in pixels.
        channels: C.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.zeros(BATCH, channels, *image_size, device=device).contiguous(memory_format=torch.channels_last)
    below, above = copy.deepcopy(parts.trunk), copy.deepcopy(parts.tail)
    for part in (below, above):
        part.to(device).to(memory_format=torch.channels_last)
    below.eval()
    activations = _no_gradient(below, images)
    trunk = _seconds(lambda: _no_gradient(below, images)) / BATCH
    above.train()
    set_frozen_eval(above)
    with torch.random.fork_rng():  # dropout draws lots
        step = _seconds(lambda: _step(above, activations)) / BATCH
    tail = _seconds(lambda: _no_gradient(above.eval(), activations)) / BATCH
    speed_up = 1.0 if device.type == "cuda" else ENGINE_SPEED_UP
    fits = work.epochs * (work.train * step + work.validation * tail)
    reads = 1 if work.in_memory else work.epochs
    disk = work.cached_bytes / DISK_BYTES_PER_SECOND
    frozen_pass = EXPORT_SECONDS + work.to_compute * trunk / speed_up + disk if work.to_compute > 0 else 0.0
    return Forecast(frozen_pass + reads * disk + fits, work.epochs * (work.train + work.validation) * trunk + fits)


def _no_gradient(module: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        outputs = module(inputs)
    first: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return first


def _step(tail: nn.Module, activations: Tensor) -> None:
    outputs = tail(activations)
    for logits in outputs if isinstance(outputs, tuple) else (outputs,):
        logits.square().mean().backward(retain_graph=True)
    tail.zero_grad()


def _seconds(work: Callable[[], object]) -> float:
    """Return the time of the fastest repetition, after one that warms up."""
    times = []
    for _ in range(1 + REPETITIONS):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
