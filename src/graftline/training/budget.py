"""A training that has only so much time: its last fit is cut to what is left, and its learning rate falls by the clock.

Letters: B batch, C channels, H height, W width.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import functional

from graftline.errors import UserError
from graftline.freezing.depth import MOST_DEEP_EPOCHS
from graftline.freezing.plan import FreezePlan
from graftline.training.memory_format import memory_format
from graftline.training.setup import TrainingSetup

ROUNDS = 8  # validations within the time: one that is half too long or too short changes it by a sixteenth
OVERHEAD_SECONDS = 15.0  # of start, export, figures and tracking
# How many images the engine passes through the frozen network in the time that a step takes for one: 6 to 8 were
# measured for EfficientNet-Lite0 (benchmarks/speed.py), and a forecast had better be too long.
PASSES_PER_STEP = 5
STEPS = 2  # that are timed, after one that warms up


def seconds_per_image(setup: TrainingSetup) -> float:
    """Return how long an image takes to train the whole network, forward and backward, on black images (B, C, H, W)."""
    preprocessing, device = setup.graft.preprocessing, setup.execution.torch_device
    network: Any = copy.deepcopy(setup.graft.network).requires_grad_(True).train()
    layout = memory_format(network, on_cpu=device.type == "cpu")
    network.to(device).to(memory_format=layout)
    batch = setup.for_plan(_whole(setup)).batch_size
    images = torch.zeros(batch, preprocessing.channels, *preprocessing.image_size, device=device)
    images, seconds = images.contiguous(memory_format=layout), []
    with torch.random.fork_rng(devices=[device] if setup.execution.is_cuda else []):  # dropout draws lots
        for _ in range(1 + STEPS):
            start = time.perf_counter()
            outputs = network(images)
            logits = outputs[0] if isinstance(outputs, tuple) else outputs
            functional.cross_entropy(logits, torch.zeros(batch, dtype=torch.long, device=device)).backward()  # type: ignore[no-untyped-call]  # as torch has it
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) / batch


def cut_to(plan: FreezePlan, seconds: float, images: int, image_seconds: float) -> FreezePlan:
    """Return a plan whose fit takes so many seconds, in about ``ROUNDS`` epochs of equal length.

    Args:
        plan: of the fit.
        seconds: it may take, validation included.
        images: of the training split.
        image_seconds: how long an image takes, as ``seconds_per_image`` tells; a tail's take less.

    >>> plan = FreezePlan(frozenset(), 0, 8, "")
    >>> [(p.epochs, p.epoch_images) for s in (80, 8000) for p in (cut_to(plan, s, 1000, 0.1),)]
    [(8, 100), (30, None)]
    """
    affordable = seconds / image_seconds
    each = math.ceil(affordable / ROUNDS)
    if each >= images:
        return replace(plan, epochs=min(MOST_DEEP_EPOCHS, max(1, int(affordable / images))), seconds=seconds)
    return replace(plan, epochs=ROUNDS, epoch_images=each, seconds=seconds)


def check_budget(setup: TrainingSetup, seconds: float) -> None:
    """Make sure that one pass of the frozen network over all images fits into the time.

    Raises:
        UserError: it does not; it says what would do.
    """
    images = sum(len(setup.version.samples(split).paths) for split in ("train", "validation"))
    needed = images * seconds_per_image(setup) / PASSES_PER_STEP
    if needed > seconds:
        enough = math.ceil((2 * needed + OVERHEAD_SECONDS) / 60)
        raise UserError(
            f"{images:,} images take about {needed:,.0f} s to pass through the network once, more than Train.minutes "
            f"leaves ({max(0, seconds):,.0f} s): give Train.minutes={enough}, or a smaller Backbone.image_size."
        )


def end_seconds(setup: TrainingSetup) -> float:
    """Return what to leave for the end of a run: export, test images, figures and tracking."""
    tested = sum(setup.version.counts()["test"].values())
    return OVERHEAD_SECONDS + tested * seconds_per_image(setup) / PASSES_PER_STEP


class Clock(pl.Callback):
    """Ends a fit when its time is over, at the end of the epoch that is nearest.

    Args:
        seconds: that the fit may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._start = self._epoch = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """Begin to count."""
        self._start = self._epoch = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 - likewise
        """Stop if half of another epoch would be too much."""
        now = time.perf_counter()
        last, self._epoch = now - self._epoch, now
        if now - self._start + last / 2 > self._seconds:
            trainer.should_stop = True


def by_clock(schedule: Callable[[int, int], float], seconds: float) -> Callable[[int, int], float]:
    """Return a schedule that goes by steps or by the clock, whichever is further; its clock starts with the first step.

    Args:
        schedule: (step, total steps) → factor.
        seconds: after which it is at its end.
    """
    start: list[float] = []

    def factor(step: int, total_steps: int) -> float:
        if step > 0 and not start:  # step 0 is asked for before the loaders have started
            start.append(time.perf_counter())
        share = (time.perf_counter() - start[0]) / seconds if start else 0.0
        return schedule(max(step, round(min(1.0, share) * total_steps)), total_steps)

    return factor


def _whole(setup: TrainingSetup) -> FreezePlan:
    names = frozenset(name for name, _ in setup.graft.network.named_parameters())
    return FreezePlan(names, 0, 1, "")
