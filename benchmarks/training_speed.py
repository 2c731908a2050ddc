"""How fast is a training of the whole network? `python benchmarks/training_speed.py [--quick] [--ways NAME ...]`.

ELPV and EfficientNet-Lite0 at 224 px, batches of 32, AdamW, no augmentation, on the CPU: graftline's fit on images
beside a plain loop, once with torch's own memory format and once channels_last, and beside what timm's train.py does
with the same images, each with its start, its epochs and their validation, in turn. Medians of three rounds, images/s
of training, ratios; about 15 minutes on 2 idle cores.

    python benchmarks/training_speed.py --ways channels_last foreach fused graftline_fused
    python benchmarks/training_speed.py --ways channels_last compiled graftline_compiled --rounds 1

measure the plain loop channels_last and graftline's fit with torch's other implementations of AdamW, and with
torch.compile (graftline's `train.compile=true`). Nothing is compiled before, neither in memory nor on disk: the
compiler's seconds are in the images/s of the first table, and told apart in a second one. graftline's fit as it is by
default always runs.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_loader, create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter
from torch import Tensor, nn
from torch._dynamo.utils import calculate_time_spent
from torch._inductor.utils import fresh_cache
from torch.utils.data import DataLoader, Dataset

from graftline.augment.policy import Policy
from graftline.backbones.backbone import Backbone, Graft
from graftline.console import print_table, say
from graftline.data.ingest import Ingest
from graftline.data.sources.elpv import Elpv
from graftline.data.split import Split
from graftline.data.version import DatasetVersion, Samples
from graftline.execution import Execution, available_cores
from graftline.features.cache import Features
from graftline.freezing.plan import plan_from_depth
from graftline.training.fit_directory import FitDirectory
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.schedule import warmup_cosine
from graftline.training.setup import TrainingSetup

BATCH, WORKERS, RATE = 32, 2, 0.001
DATA_CONFIG = ("interpolation", "mean", "std", "crop_pct", "crop_mode")  # what timm calls as we do


@dataclass(frozen=True)
class Work:
    """How much is done: images of the two splits, epochs, the network's input in px, and how often."""

    train: int = 256
    validation: int = 64
    epochs: int = 3
    image_size: int = 224
    repetitions: int = 3


QUICK = Work(train=64, validation=32, epochs=2, image_size=96, repetitions=1)


@dataclass(frozen=True)
class FewImages(DatasetVersion):
    """The first images of a version's splits."""

    work: Work = Work()

    @classmethod
    def of(cls, version: DatasetVersion, work: Work) -> "FewImages":
        """Return those of a whole version."""
        return cls(version.name, version.digest, version.directory, version.class_names, version.parent, work)

    def samples(self, split: str) -> Samples:
        """Return the first images of a split."""
        samples, rows = super().samples(split), slice(self.work.train if split == "train" else self.work.validation)
        assert samples.sizes is not None
        return replace(
            samples,
            paths=samples.paths[rows],
            labels=samples.labels[rows],
            weights=None,
            sha256=samples.sha256[rows],
            sizes=samples.sizes[rows],
        )

    def graft(self) -> Graft:
        """Return the same network with the same head each time."""
        pl.seed_everything(0, verbose=False)
        return Backbone("tf_efficientnet_lite0", image_size=self.work.image_size).build(len(self.class_names))


class Files(Dataset[tuple[Tensor, int]]):
    """Image files, as anyone would read them."""

    def __init__(self, samples: Samples, transform: Callable[[Image.Image], Tensor] | None = None) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.samples.paths[index]) as image:
            picture = image.convert("RGB")
        assert self.transform is not None
        return self.transform(picture), int(self.samples.labels[index])


def plain_loop(
    images: FewImages,
    memory_format: torch.memory_format = torch.channels_last,
    *,
    compiled: bool = False,
    **adamw: bool,
) -> None:
    """Train as a loop of 40 lines does; channels_last it is the plain loop of `make bench-accuracy`.

    Args:
        images: what it is trained on.
        memory_format: of network and images.
        compiled: run the network through torch.compile.
        adamw: ``foreach`` or ``fused``, which say how torch computes a step.
    """
    graft = images.graft()
    network, loaders = graft.network.to(memory_format=memory_format), []  # type: ignore[call-overload]
    if compiled:
        network.compile()
    transform = create_transform(**_data_config(graft))
    for split in ("train", "validation"):
        files = Files(images.samples(split), transform)
        loaders.append(DataLoader(files, batch_size=BATCH, shuffle=split == "train", num_workers=WORKERS))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, **adamw)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, images.work.epochs * len(loaders[0]))
    for _ in range(images.work.epochs):
        network.train()
        for inputs, labels in loaders[0]:
            loss = F.cross_entropy(network(inputs.to(memory_format=memory_format)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        _validate(network, loaders[1])


def timm_loop(images: FewImages) -> None:
    """Train as timm's train.py does where it is told nothing but batch size, optimizer and rate, without augmentation.

    Its loaders, optimizer, scheduler, meters and clearing of the gradients; on a CPU it has no prefetcher and no AMP.
    """
    graft = images.graft()
    network: nn.Module = graft.network
    loaders = [
        create_loader(
            Files(images.samples(split)),
            **_data_config(graft),
            batch_size=BATCH,
            is_training=split == "train",
            no_aug=True,
            use_prefetcher=False,
            num_workers=WORKERS,
            device=torch.device("cpu"),
        )
        for split in ("train", "validation")
    ]
    optimizer = create_optimizer_v2(network, opt="adamw", lr=RATE, weight_decay=2e-5)
    schedule, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=images.work.epochs)
    for epoch in range(images.work.epochs):
        network.train()
        meter = AverageMeter()
        for inputs, labels in loaders[0]:
            loss = F.cross_entropy(network(inputs), labels)
            meter.update(loss.item(), len(inputs))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        _validate(network, loaders[1])
        assert schedule is not None
        schedule.step(epoch + 1)


def graftline_fit(images: FewImages, *, compiled: bool = False, **adamw: bool) -> None:
    """Train as `make train freeze=none features=live augment=none train.batch_size=32` does.

    Args:
        images: what it is trained on.
        compiled: as with ``train.compile=true``.
        adamw: as for ``plain_loop``.
    """
    setup = TrainingSetup(
        graft=images.graft(),
        version=images,
        policy=Policy("none", None, {}),
        features=Features(cache=False),
        recipe=Recipe(batch_size=BATCH, workers=WORKERS, patience=None, compile=compiled),
        optimizer=functools.partial(torch.optim.AdamW, lr=None, **adamw),  # type: ignore[arg-type]  # as the plan says
        schedule=warmup_cosine,
        make_trainer=functools.partial(pl.Trainer, accelerator="cpu", devices=1, gradient_clip_val=1.0),
        execution=Execution(),
        seed=0,
    )
    plan = plan_from_depth(setup.graft.network, 0, "bench", epochs=images.work.epochs, learning_rate=RATE)
    with tempfile.TemporaryDirectory() as checkpoints:
        fit_phase(setup, plan, FitDirectory(Path(checkpoints)), show_progress=False)


def _data_config(graft: Graft) -> dict[str, Any]:
    """Return timm's arguments for the preprocessing of a network."""
    settings = graft.preprocessing.to_dict()
    return {"input_size": (3, *settings.pop("image_size")), **{key: settings[key] for key in DATA_CONFIG}}


@torch.no_grad()
def _validate(network: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the share of images that a network gets right."""
    network.eval()
    right, seen = 0, 0
    for inputs, labels in loader:
        right += int((network(inputs).argmax(dim=1) == labels).sum())
        seen += len(labels)
    return right / seen


class Timing(NamedTuple):
    """Seconds of a training from its start to its end, and those of them in which torch's compiler was at work."""

    seconds: float
    compiling: float


def timed(train: Callable[[FewImages], None], images: FewImages) -> Timing:
    """Train with nothing compiled before."""
    torch.compiler.reset()  # the seconds that torch has counted, too
    with fresh_cache():
        start = time.perf_counter()
        train(images)
        return Timing(time.perf_counter() - start, calculate_time_spent()["total_wall_time"])


def measure(images: FewImages, ways: Iterable[str]) -> dict[str, list[Timing]]:
    """Return how long each way has taken, in each repetition."""
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    for repetition in range(images.work.repetitions):
        for name in timings:
            timings[name].append(timed(WAYS[name].train, images))
            seconds, compiling = timings[name][-1]
            speed = images.work.epochs * images.work.train / seconds
            told = f"{speed:.1f} images/s, {compiling:.0f} of {seconds:.0f} s compiling"
            say(f"{repetition + 1}: {WAYS[name].words}: {told}")
    return timings


def print_speeds(title: str, images: int, timings: dict[str, list[Timing]]) -> None:
    """Print the images/s of the trainings as they were.

    Args:
        title: of the table.
        images: that a training has seen.
        timings: by the name of the way.
    """
    speeds = {name: [images / one.seconds for one in values] for name, values in timings.items()}
    ours = statistics.median(speeds[OURS])
    rows = [
        [
            WAYS[name].words,
            f"{statistics.median(values):.1f}",
            f"{ours / statistics.median(values):.2f}",
            f"{min(values):.1f} to {max(values):.1f}",
        ]
        for name, values in speeds.items()
    ]
    print_table(title, ["", "images/s", "graftline is so many times as fast", "from ... to"], rows)


def print_compiling(images: int, timings: dict[str, list[Timing]]) -> None:
    """Print the seconds of torch's compiler, and the images/s without them; the arguments are as before."""
    rows = [
        [
            WAYS[name].words,
            f"{statistics.median(one.compiling for one in values):.0f}",
            f"{statistics.median(images / (one.seconds - one.compiling) for one in values):.1f}",
        ]
        for name, values in timings.items()
        if any(one.compiling for one in values)
    ]
    if rows:
        print_table("torch's compiler", ["", "seconds", "images/s without them"], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller images, once: does it run?")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["plain", "channels_last", "timm", OURS])
    parser.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    asked = parser.parse_args()
    work = QUICK if asked.quick else Work()
    work = work if asked.rounds is None else replace(work, repetitions=asked.rounds)
    torch.set_num_threads(available_cores())
    split = Split(train=0.6, validation=0.15, test=0.25, seed=0, existing=True)
    with tempfile.TemporaryDirectory() as folder:
        version = Ingest("elpv", None, Elpv(threshold=0.5), split, directory=folder).run().version
        timings = measure(FewImages.of(version, work), dict.fromkeys([*asked.ways, OURS]))
    images = work.epochs * work.train
    print_speeds(f"Training of the whole network at {work.image_size} px", images, timings)
    print_compiling(images, timings)


class Way(NamedTuple):
    """What a training is called in the tables, and what does it."""

    words: str
    train: Callable[[FewImages], None]


OURS = "graftline"
WAYS = {  # by what --ways calls them
    "plain": Way("plain loop", functools.partial(plain_loop, memory_format=torch.contiguous_format)),
    "channels_last": Way("plain loop, channels_last", plain_loop),
    "foreach": Way("plain loop, channels_last, foreach AdamW", functools.partial(plain_loop, foreach=True)),
    "fused": Way("plain loop, channels_last, fused AdamW", functools.partial(plain_loop, fused=True)),
    "compiled": Way("plain loop, channels_last, compiled", functools.partial(plain_loop, compiled=True)),
    "timm": Way("timm", timm_loop),
    OURS: Way("graftline", graftline_fit),
    "graftline_fused": Way("graftline, fused AdamW", functools.partial(graftline_fit, fused=True)),
    "graftline_compiled": Way("graftline, compiled", functools.partial(graftline_fit, compiled=True)),
}

if __name__ == "__main__":
    main()
