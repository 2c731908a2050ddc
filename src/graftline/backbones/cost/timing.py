"""Measure how long a network's forward pass takes on this machine, with torch and with ONNX Runtime.

Letters: B batch, C channels, H height, W width.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from graftline.backbones.onnx import export_onnx, open_session
from graftline.errors import first_line

FEWEST_REPETITIONS, MOST_REPETITIONS = 3, 200
LONGEST_PASS = 3.0  # s; a batch that takes longer is not timed

TimedEngine = Literal["torch", "onnx"]
ENGINES: dict[TimedEngine, str] = {"onnx": "ONNX Runtime", "torch": "torch"}


@dataclass(frozen=True)
class Timing:
    """How long a forward pass takes.

    Attributes:
        engine: what ran it.
        batch_size: images per pass.
        milliseconds: per image; the median of the repetitions.
        repetitions: how many passes were timed.
    """

    engine: TimedEngine
    batch_size: int
    milliseconds: float
    repetitions: int


@dataclass(frozen=True)
class NetworkTiming:
    """The timings of a network.

    Attributes:
        timings: one for each engine and batch size that was timed.
        notes: why others were not, a sentence without a full stop for each.
    """

    timings: tuple[Timing, ...]
    notes: tuple[str, ...] = ()

    def milliseconds(self, engine: TimedEngine, batch_size: int) -> float | None:
        """Return the time per image, or None if it was not measured."""
        found = (timing for timing in self.timings if (timing.engine, timing.batch_size) == (engine, batch_size))
        return next((timing.milliseconds for timing in found), None)


def measure(
    network: nn.Module,
    image_size: tuple[int, int],
    channels: int,
    batch_sizes: Sequence[int],
    seconds: float,
    onnx: bool = True,
) -> NetworkTiming:
    """Time the forward pass of a network on the CPU, with all cores, in float32.

    torch runs eagerly with channels last, its faster layout on a CPU; the network is put into that and eval mode.

    Args:
        network: on the CPU.
        image_size: (H, W) in pixels.
        channels: C.
        batch_sizes: images per forward pass, each of which is timed.
        seconds: about how long to repeat, shared evenly by engines and batch sizes. A slow network takes longer, as it
            is timed three times at least; where a pass of the larger batch would take more than 3 s, only the smaller
            is timed.
        onnx: whether ONNX Runtime is to be timed as well; the export takes up to a minute.
    """
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(size, channels, *image_size, generator=generator) for size in sorted(batch_sizes)]
    share = seconds / (2 * len(batches))
    network.eval().to(memory_format=torch.channels_last)
    batches_last = [images.to(memory_format=torch.channels_last) for images in batches]
    timings, notes = _time_batches("torch", _torch_runner(network), batches_last, share)
    if not onnx:
        return NetworkTiming(tuple(timings), tuple(notes))
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.onnx"
            export_onnx(network, file, image_size, channels, outputs=["logits"])
            session = open_session(file)
            more = _time_batches("onnx", lambda images: session.run(None, {"image": images.numpy()}), batches, share)
    except Exception as error:  # the exporter's many kinds; a network without ONNX has its other costs still
        reason = f"{type(error).__name__}: {first_line(error)}"
        return NetworkTiming(tuple(timings), (*notes, f"no time with ONNX Runtime ({reason})"))
    return NetworkTiming((*timings, *more[0]), (*notes, *more[1]))


def _torch_runner(network: nn.Module) -> Callable[[Tensor], object]:
    def run(images: Tensor) -> object:
        with torch.inference_mode():
            return network(images)

    return run


def _time_batches(
    engine: TimedEngine, run: Callable[[Tensor], object], batches: Sequence[Tensor], seconds: float
) -> tuple[list[Timing], list[str]]:
    """Time the batches, the smallest first, and leave out those that would take too long, going by the one before."""
    timings: list[Timing] = []
    notes = []
    for images in batches:
        expected = len(images) * timings[-1].milliseconds / 1000 if timings else 0.0
        if expected > LONGEST_PASS:
            notes.append(
                f"a batch of {len(images)} is not timed with {ENGINES[engine]}: a pass would take {expected:.0f} s"
            )
        else:
            timings.append(_time(engine, run, images, seconds))
    return timings, notes


def _time(engine: TimedEngine, run: Callable[[Tensor], object], images: Tensor, seconds: float) -> Timing:
    first = _seconds(run, images)  # it allocates, which only counts where a pass is short
    passes = [first] if first > seconds else []
    while len(passes) < FEWEST_REPETITIONS or (sum(passes) < seconds and len(passes) < MOST_REPETITIONS):
        passes.append(_seconds(run, images))
    return Timing(engine, len(images), 1000 * statistics.median(passes) / len(images), len(passes))


def _seconds(run: Callable[[Tensor], object], images: Tensor) -> float:
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start
