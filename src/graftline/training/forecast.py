"""How long a training will take, on cached activations and live: the parts are timed on a few images and added up.

Letters: B batch, C channels, H height, W width.
"""

import copy
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from graftline.augment.preprocess import Preprocessing
from graftline.data.loaders import decode_sample
from graftline.data.version import Samples
from graftline.execution import Execution
from graftline.features.cut import Cut
from graftline.features.engine import GPU_BATCH
from graftline.features.trace import main_logits
from graftline.freezing.depth import DEEP_BATCH
from graftline.freezing.plan import set_frozen_eval
from graftline.training.allocator import freed_memory_kept
from graftline.training.memory_format import avoid_copies, memory_format

logger = logging.getLogger(__name__)

BATCH = 8  # images that are timed on a CPU; few leave a GPU idle: there as many as a step or the frozen pass has
REPETITIONS = 3  # of which the fastest counts
TIMED_IMAGES = 8  # that are decoded
# What is not timed, since it would take as long as it saves: the engine runs the frozen network at least so many times
# as fast as torch does on a CPU (benchmarks/speed.py); exporting it; reading from and writing to a disk.
ENGINE_SPEED_UP = 2.5
EXPORT_SECONDS = 3.0
HALF = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}  # Lightning's names of precisions
DISK_BYTES_PER_SECOND = 5e8


@dataclass(frozen=True)
class Workload:
    """How much there is to do.

    Attributes:
        train: images of the training split.
        validation: images of the validation split.
        epochs: at most.
        to_compute: images, all views of them counted, whose activations are not there yet.
        cached_bytes: on disk, all views and both splits.
        in_memory: whether the activations are read from disk once only.
        decode: seconds for an image file, where all cores decode.
        decoded_live: images that a live training decodes, in all its epochs.
    """

    train: int
    validation: int
    epochs: int
    to_compute: int
    cached_bytes: float
    in_memory: bool
    decode: float
    decoded_live: int


@dataclass(frozen=True)
class SecondsPerImage:
    """How long the parts of a network take for an image.

    Attributes:
        trunk: the frozen part, as a live training runs it.
        engine: the frozen part, as the frozen pass runs it.
        step: the trained part, forward and backward.
        tail: the trained part in evaluation.
    """

    trunk: float
    engine: float
    step: float
    tail: float


@dataclass(frozen=True)
class Forecast:
    """Predicted seconds of a training.

    Attributes:
        cached: on activations, the frozen pass included.
        live: on images.
    """

    cached: float
    live: float

    def sentence(self) -> str:
        """Return it in words.

        >>> Forecast(12.4, 310.0).sentence()
        'predicted 12 s on cached activations, 310 s live'
        """
        return f"predicted {self.cached:,.0f} s on cached activations, {self.live:,.0f} s live"


def predict(seconds: SecondsPerImage, work: Workload) -> Forecast:
    """Add up both ways of training.

    >>> seconds = SecondsPerImage(trunk=0.04, engine=0.02, step=0.002, tail=0.001)
    >>> predict(seconds, Workload(1000, 500, 10, 1500, cached_bytes=0, in_memory=True, decode=0.01, decoded_live=15000))
    Forecast(cached=73.0, live=775.0)
    """
    fits = work.epochs * (work.train * seconds.step + work.validation * seconds.tail)
    reads = 1 if work.in_memory else work.epochs
    disk = work.cached_bytes / DISK_BYTES_PER_SECOND
    computed = EXPORT_SECONDS + work.to_compute * (seconds.engine + work.decode) + disk
    frozen_pass = computed if work.to_compute > 0 else 0.0
    live = work.epochs * (work.train + work.validation) * seconds.trunk + work.decoded_live * work.decode
    return Forecast(frozen_pass + reads * disk + fits, live + fits)


def time_parts(
    parts: Cut, image_size: tuple[int, int], channels: int, execution: Execution, step_images: int = DEEP_BATCH
) -> SecondsPerImage:
    """Time trunk and tail on a few black images (B, C, H, W).

    Args:
        parts: on the CPU; copies of them are timed, so that they, and the random numbers, stay as they are.
        image_size: (H, W) in pixels.
        channels: C.
        execution: where the training will run.
        step_images: of a step, as many as a GPU is timed with.
    """
    device = execution.torch_device
    batch = step_images if execution.is_cuda else BATCH
    layout = memory_format(parts.tail, on_cpu=device.type == "cpu")
    images = torch.zeros(batch, channels, *image_size, device=device).contiguous(memory_format=layout)
    trunk, tail = copy.deepcopy(parts.trunk), copy.deepcopy(parts.tail)
    for part in (trunk, tail):
        part.to(device).to(memory_format=layout)
        avoid_copies(part)
    trunk.eval()
    with autocast(execution) if execution.is_cuda else nullcontext():  # a CPU's engine computes in float32
        activations = _no_gradient(trunk, images)
        trunk_seconds = _seconds(lambda: _no_gradient(trunk, images), device) / batch
        tail.train()
        set_frozen_eval(tail)
        with freed_memory_kept(), torch.random.fork_rng(devices=[device] if execution.is_cuda else []):  # dropout draws
            step_seconds = _seconds(lambda: _step(tail, activations), device) / batch
        tail_seconds = _seconds(lambda: _no_gradient(tail.eval(), activations), device) / batch
    engine_seconds = (
        time_pass(trunk, image_size, channels, execution) if execution.is_cuda else trunk_seconds / ENGINE_SPEED_UP
    )
    return SecondsPerImage(trunk_seconds, engine_seconds, step_seconds, tail_seconds)


def time_pass(network: nn.Module, image_size: tuple[int, int], channels: int, execution: Execution) -> float:
    """Return how long an image takes in the frozen pass on a GPU, by a batch of black ones (B, C, H, W).

    Args:
        network: frozen; a copy of it is timed.
        image_size: (H, W) in pixels.
        channels: C.
        execution: where the pass will run.
    """
    device = execution.torch_device
    images = torch.zeros(GPU_BATCH, channels, *image_size, device=device).contiguous(memory_format=torch.channels_last)
    frozen = copy.deepcopy(network).to(device).to(memory_format=torch.channels_last).eval()
    with torch.autocast(device.type, torch.float16, enabled=execution.is_cuda):
        return _seconds(lambda: _no_gradient(frozen, images), device) / GPU_BATCH


def autocast(execution: Execution) -> torch.autocast:
    """Return what lets a block compute in the precision of the training."""
    half = HALF.get(execution.precision)
    return torch.autocast(execution.torch_device.type, half, enabled=half is not None)


def decode_seconds(samples: Samples, execution: Execution) -> float:
    """Return how long an image takes to be decoded where all threads decode, by a few images from all of a split."""
    count = len(samples.paths)
    rows = range(count)[:: max(1, count // TIMED_IMAGES)][:TIMED_IMAGES]
    start = time.perf_counter()
    for row in rows:
        decode_sample(samples, row)
    return (time.perf_counter() - start) / len(rows) / execution.num_threads


def reduced_jpeg_side(samples: Samples, preprocessing: Preprocessing) -> int | None:
    """Return the ``DecodeSettings.jpeg_side_px`` that makes decoding faster.

    It is twice the side that the network sees, where its input differs by 2 of 255 levels at most (docs/decoding.md).
    JPEGs of at least twice that are then decoded at half of their size or less.

    Args:
        samples: of a split.
        preprocessing: of the network.

    Returns:
        None where half of the images are no such JPEGs, or their size is limited already.
    """
    if samples.sizes is None or samples.decoding.settings.jpeg_side_px is not None:
        return None
    side = 2 * max(preprocessing.image_size)
    are_jpegs = np.array([path.lower().endswith((".jpg", ".jpeg")) for path in samples.paths])
    return side if np.mean(are_jpegs & (samples.sizes.min(axis=1) >= 2 * side)) > 0.5 else None


def tell_reduced_jpeg_side(samples: Samples, preprocessing: Preprocessing) -> None:
    """Log what would make decoding faster, where anything would."""
    if (side := reduced_jpeg_side(samples, preprocessing)) is not None:
        logger.info(
            "Most images are JPEGs that are at least four times as large as the network sees them: "
            f"DecodeSettings.jpeg_side_px={side} decodes them faster, and the network sees nearly the same."
        )


def _no_gradient(module: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return main_logits(module(inputs))


def _step(tail: nn.Module, activations: Tensor) -> None:
    outputs = tail(activations)
    for logits in outputs if isinstance(outputs, tuple) else (outputs,):
        logits.square().mean().backward(retain_graph=True)
    tail.zero_grad()


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the time of the fastest repetition, after one that warms up."""
    times = []
    for _ in range(1 + REPETITIONS):
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
