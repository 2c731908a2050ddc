"""How fast is a GPU here? `python benchmarks/gpu.py [--device cpu] [--tiny] [--network NAME]`.

Made-up images that lie on the device, so that nothing but the computation is measured: images/s of the frozen pass and
of training the whole network, graftline's beside a plain loop on timm, in float32, TF32 and bfloat16, in torch's order
and channels_last, with and without torch.compile, and the plain loop with torch.compile's CUDA graphs too
(mode="reduce-overhead"). Each way has its first steps, compilation among them, before the clock starts. It runs on a
CPU as well, where TF32 and CUDA graphs are left out; `--tiny` only shows that it runs.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from graftline.backbones.layers import body_groups
from graftline.console import print_table, say
from graftline.data.loaders import Batch, DrawBatches, DrawSampler
from graftline.execution import Execution
from graftline.features.cut import cut
from graftline.features.engine import make_engine
from graftline.freezing.plan import plan_from_depth
from graftline.training.checkpointing import checkpointed
from graftline.training.compiling import compiled
from graftline.training.fit import fit
from graftline.training.fit_directory import FitDirectory
from graftline.training.module import GraftModule
from graftline.training.schedule import constant

Precision = Literal["float32", "TF32", "bfloat16"]
Compile = Literal["", "compiled", "compiled with CUDA graphs"]
CLASSES, RATE = 10, 1e-4
ORDERS = {False: torch.contiguous_format, True: torch.channels_last}


@dataclass(frozen=True)
class Work:
    """What is run: the network, images per step, their size in px, steps before the clock starts and while it runs."""

    network: str = "tf_efficientnet_lite0"
    batch: int = 128
    image_size: int = 224
    warm_up: int = 10
    steps: int = 50

    @classmethod
    def tiny(cls) -> "Work":
        """Return the least that runs."""
        return cls("test_efficientnet", batch=4, image_size=32, warm_up=1, steps=2)

    def build(self) -> Any:
        """Return the network with random weights, of which speed knows nothing."""
        torch.manual_seed(0)
        return timm.create_model(self.network, num_classes=CLASSES)

    def images(self, device: str) -> Tensor:
        """Return a batch (B, C, H, W)."""
        return torch.randn(self.batch, 3, self.image_size, self.image_size, device=device)


@dataclass(frozen=True)
class Way:
    """How a network is run."""

    precision: Precision
    channels_last: bool = True
    compile: Compile = ""
    checkpointing: bool = False

    def words(self) -> str:
        """Return it as a table's cell."""
        parts = [
            self.precision,
            "channels_last" if self.channels_last else "",
            self.compile,
            "gradient checkpointing" if self.checkpointing else "",
        ]
        return ", ".join(filter(None, parts))

    def compiled(self, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a network, or a method of one, as torch.compile makes it."""
        if not self.compile:
            return run
        mode = "reduce-overhead" if self.compile == "compiled with CUDA graphs" else "default"
        compiled: Callable[..., Tensor] = torch.compile(run, mode=mode)
        return compiled

    @contextmanager
    def numbers(self, device: str) -> Iterator[None]:
        """Let matrix products and convolutions have this precision during the block."""
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest" if self.precision == "float32" else "high")
        torch.backends.cudnn.allow_tf32 = self.precision != "float32"
        try:
            with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16"):
                yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]


def wait_for(device: str) -> None:
    """Wait until the device has done all that it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def speed_of(step: Callable[[], object], work: Work, device: str) -> float:
    """Return the images/s of a step."""
    for _ in range(work.warm_up):
        step()
    wait_for(device)
    start = time.perf_counter()
    for _ in range(work.steps):
        step()
    wait_for(device)
    return work.batch * work.steps / (time.perf_counter() - start)


def plain_pass(work: Work, device: str, way: Way) -> float:
    """Return the images/s of timm's network without its head, as anyone would run it."""
    network = work.build().eval().to(device).to(memory_format=ORDERS[way.channels_last])
    images = work.images(device).contiguous(memory_format=ORDERS[way.channels_last])
    run = way.compiled(network.forward_features)
    with torch.inference_mode(), way.numbers(device):
        return speed_of(lambda: run(images), work, device)


def frozen_pass(work: Work, device: str) -> tuple[str, float]:
    """Return what our frozen pass runs on, and its images/s, which has the images in the computer's memory."""
    network = work.build()
    plan = plan_from_depth(network, len(body_groups(network)), "bench")
    plan.apply(network)
    trunk = cut(network, plan.trainable, (work.image_size, work.image_size), 3).trunk
    images = work.images("cpu")
    with tempfile.TemporaryDirectory() as folder:
        execution = Execution() if device == "cpu" else Execution.local("gpu")
        engine = make_engine(trunk, Path(folder) / "trunk.onnx", images, execution)
        return engine.runs_on, speed_of(lambda: engine.run(images), work, device)


def plain_loop(work: Work, device: str, way: Way) -> float:
    """Return the images/s of a training as a loop of 20 lines does it."""
    order = ORDERS[way.channels_last]
    network: nn.Module = work.build().to(device).to(memory_format=order)
    images = work.images(device).contiguous(memory_format=order)
    labels = torch.arange(work.batch, device=device) % CLASSES
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    run = way.compiled(network)

    def step() -> None:
        with way.numbers(device):
            loss = F.cross_entropy(run(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
        optimizer.step()

    return speed_of(step, work, device)


class Stopwatch(pl.Callback):
    """Times the steps after the first ones."""

    def __init__(self, work: Work, device: str) -> None:
        self._work, self._device = work, device
        self._start = 0.0
        self.speed = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Start the clock, or stop it."""
        done = trainer.global_step
        if done not in (self._work.warm_up, self._work.warm_up + self._work.steps):
            return
        wait_for(self._device)
        now = time.perf_counter()
        if done == self._work.warm_up:
            self._start = now
        else:
            self.speed = self._work.batch * self._work.steps / (now - self._start)


class Repeated(Dataset[Batch]):
    """One batch in place of any image: loading it takes no time."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __getitem__(self, draw: Any) -> Batch:
        return self.batch

    def loader(self, number: int) -> DataLoader[Batch]:
        """Return what gives the batch so often in an epoch."""
        size = len(self.batch["label"])
        sampler = DrawSampler(number * size, shuffle=True, seed=0)
        return DataLoader(self, batch_sampler=DrawBatches(sampler, size), collate_fn=lambda batches: batches[0])


def fit_speed(work: Work, device: str, way: Way) -> float:
    """Return the images/s of graftline's fit, with all that Lightning and we do around a step."""
    network = work.build()
    batch = Batch(
        image=work.images(device),
        label=torch.arange(work.batch, device=device) % CLASSES,
        weight=torch.ones(work.batch, device=device),
        index=torch.arange(work.batch, device=device),
    )
    loaders = [Repeated(batch).loader(number) for number in (work.warm_up + work.steps, 1)]
    module = GraftModule(
        network,
        optimizer=functools.partial(torch.optim.AdamW, lr=RATE),
        schedule=constant,
        weight_decay=0.01,
        on_cpu=device == "cpu",
    )
    watch = Stopwatch(work, device)
    precision = "bf16-mixed" if way.precision == "bfloat16" else "32-true"

    def make_trainer(callbacks: Sequence[pl.Callback], **settings: Any) -> pl.Trainer:
        accelerator = "cpu" if device == "cpu" else "gpu"
        common: dict[str, Any] = {"accelerator": accelerator, "devices": 1, "max_epochs": 1, "precision": precision}
        return pl.Trainer(callbacks=[*callbacks, watch], **common, **settings)

    # Lightning has its own autocast
    of_float32 = replace(way, precision="TF32") if way.precision == "bfloat16" else way
    with (
        tempfile.TemporaryDirectory() as folder,
        of_float32.numbers(device),
        checkpointed(network, on=way.checkpointing),
        compiled(network, on=bool(way.compile)),
    ):
        fit(module, make_trainer, (loaders[0], loaders[1]), FitDirectory(Path(folder)), show_progress=False)
    return watch.speed


def list_ways(device: str, *, tiny: bool) -> list[Way]:
    """Return the ways in which the plain loop is run on a device."""
    precisions: list[Precision] = ["float32", "bfloat16"] if device == "cpu" else ["float32", "TF32", "bfloat16"]
    compiles: list[Compile] = [""] if tiny else ["", "compiled"]
    if device == "cuda" and not tiny:
        compiles.append("compiled with CUDA graphs")
    return [Way(*one) for one in product(precisions, (False, True), compiles)]


def measure_pass(work: Work, device: str, ways: Sequence[Way]) -> list[list[str]]:
    """Return the table of the frozen pass."""
    runs_on, ours = frozen_pass(work, device)
    rows = [["graftline", runs_on, f"{ours:,.0f}", "1.00"]]
    for way in ways:
        speed = plain_pass(work, device, way)
        say(f"Frozen pass, plain loop on timm, {way.words()}: {speed:,.0f} images/s")
        rows.append(["plain loop on timm", way.words(), f"{speed:,.0f}", f"{ours / speed:.2f}"])
    return rows


def measure_training(work: Work, device: str, ways: Sequence[Way]) -> list[list[str]]:
    """Return the table of the training."""
    rows = []
    for name, measure in (("plain loop on timm", plain_loop), ("graftline", fit_speed)):
        for way in ways:
            if name == "graftline" and (not way.channels_last or way.compile == "compiled with CUDA graphs"):
                continue  # it has its own rule for the order, and no CUDA graphs
            speed = measure(work, device, way)
            say(f"Training, {name}, {way.words()}: {speed:,.0f} images/s")
            rows.append([name, way.words(), f"{speed:,.0f}"])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--network", help="a name of timm's")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, two steps, nothing compiled: does it run?")
    given = parser.parse_args(arguments)
    work, device = Work.tiny() if given.tiny else Work(), given.device
    work = work if given.network is None else replace(work, network=given.network)
    ways = list_ways(device, tiny=given.tiny)
    where = "the CPU" if device == "cpu" else torch.cuda.get_device_name()
    rows = measure_pass(work, device, ways)
    titles = ["", "how", "images/s", "graftline is so many\ntimes as fast"]
    print_table(f"Frozen pass of {work.network} at {work.image_size} px on {where}", titles, rows)
    rows = measure_training(work, device, ways)
    title = f"Training of all of {work.network} at {work.image_size} px, batches of {work.batch}, on {where}"
    print_table(title, ["", "how", "images/s"], rows)


if __name__ == "__main__":
    main()
