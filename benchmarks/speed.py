"""What docs/caching.md claims about speed: `make bench`. Two things in one run, medians of three, ratios.

ELPV and EfficientNet-Lite0 at 224 px; on 2 cores it takes about half an hour. Live epochs all do the same work: one is
timed three times and ten of them are ten times the median.
"""

import functools
import itertools
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytorch_lightning as pl
import timm
import torch

from graftline.augment.draw import Draw
from graftline.augment.policy import EvalTransform, Policy
from graftline.backbones.backbone import Backbone, Graft
from graftline.backbones.onnx import export_onnx, open_session
from graftline.console import print_facts, print_table, say
from graftline.data.ingest import Ingest
from graftline.data.loaders import ImageDataset
from graftline.data.sources.elpv import Elpv
from graftline.data.split import Split
from graftline.data.version import Samples
from graftline.execution import Execution
from graftline.features.activation_table import Matrix
from graftline.features.cache import ActivationRequest, Features, activation_loader
from graftline.features.cut import Cut, cut
from graftline.features.engine import make_engine
from graftline.freezing.plan import FreezePlan, plan_from_depth
from graftline.training.fit import FitOptions, fit
from graftline.training.fit_directory import FitDirectory
from graftline.training.module import GraftModule
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant
from graftline.training.setup import TrainingSetup

EPOCHS, REPETITIONS = 10, 3
MANY = 20_000  # images of the second data set, which are ELPV's over and over
SPEED_UP_IMAGES = 96  # on which engine and torch are compared
EXECUTION = Execution()  # the CPU


class Bench:
    """The data, the network and a folder that is gone afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        split = Split(train=0.6, validation=0.15, test=0.25, seed=0, existing=True)
        self.version = Ingest("elpv", None, Elpv(threshold=0.5), split, directory=str(folder / "data")).run().version

    def graft(self, name: str = "tf_efficientnet_lite0") -> Graft:
        """Return a network with a new head."""
        pl.seed_everything(0, verbose=False)
        return Backbone(name).build(len(self.version.class_names))

    def plan(self, graft: Graft, trained_groups: int, epochs: int) -> FreezePlan:
        """Return the plan that trains the head and so many layer groups."""
        return plan_from_depth(graft.network, 8 - trained_groups, "bench", epochs=epochs, learning_rate=0.001)

    def fit(self, trained_groups: int, *, cache: bool, epochs: int, directory: Path) -> float:
        """Return the seconds of a training from the built network on: frozen pass, export and epochs."""
        features = Features(cache=cache, directory=str(directory))
        graft = self.graft()
        setup = TrainingSetup(
            graft=graft,
            version=self.version,
            policy=Policy("none", None, {}),
            features=features,
            recipe=Recipe(batch_size=64, workers=2, patience=None),
            optimizer=functools.partial(torch.optim.AdamW, lr=None),
            schedule=constant,
            make_trainer=functools.partial(pl.Trainer, accelerator="cpu", devices=1),
            execution=EXECUTION,
            seed=0,
        )
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self.folder) as checkpoints:
            plan = self.plan(graft, trained_groups, epochs)
            fit_phase(setup, plan, FitDirectory(Path(checkpoints)), show_progress=False)
        return time.perf_counter() - start


def median(measure: Callable[[], float]) -> float:
    """Return the median of three."""
    return statistics.median(measure() for _ in range(REPETITIONS))


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """Yield an empty folder for a cache."""
    name = Path(tempfile.mkdtemp(dir=folder))
    yield name
    shutil.rmtree(name)


def first_run(bench: Bench, trained_groups: int) -> float:
    """Return the seconds of a training whose cache is empty."""
    with fresh(bench.folder) as cache:
        return bench.fit(trained_groups, cache=True, epochs=EPOCHS, directory=cache)


def live_against_cached(bench: Bench, trained_groups: int) -> tuple[float, float, float]:
    """Return seconds of ten epochs: live, cached in the first run, cached with the cache there."""
    live = EPOCHS * median(lambda: bench.fit(trained_groups, cache=False, epochs=1, directory=bench.folder))
    first = median(lambda: first_run(bench, trained_groups))
    with fresh(bench.folder) as cache:
        bench.fit(trained_groups, cache=True, epochs=1, directory=cache)
        again = median(lambda: bench.fit(trained_groups, cache=True, epochs=EPOCHS, directory=cache))
    return live, first, again


def head_parts(bench: Bench, name: str) -> tuple[Cut, Graft]:
    """Return a network cut below its head."""
    graft = bench.graft(name)
    plan = plan_from_depth(graft.network, 99, "bench")
    plan.apply(graft.network)
    return cut(graft.network, plan.trainable, graft.preprocessing.image_size), graft


def decoded(samples: Samples, graft: Graft) -> np.ndarray:
    """Return images (N, C, H, W) float32, ready for the network."""
    images = ImageDataset(samples, EvalTransform(graft.preprocessing))
    return np.stack([images[Draw(0, index)]["image"] for index in range(len(samples.paths))])


def engine_against_torch(bench: Bench, name: str) -> tuple[float, float]:
    """Return images per second of the trunk: torch eager channels_last, and the engine as the frozen pass calls it."""
    parts, graft = head_parts(bench, name)
    samples = bench.version.samples("test")
    few = Samples(
        samples.paths[:SPEED_UP_IMAGES], samples.labels[:SPEED_UP_IMAGES], None, samples.sha256[:SPEED_UP_IMAGES]
    )
    images = torch.from_numpy(decoded(few, graft))
    engine = make_engine(parts.trunk, bench.folder / f"{name}.onnx", images[:8], EXECUTION)
    assert engine.runs_on == "ONNX Runtime"
    last = images.contiguous(memory_format=torch.channels_last)
    trunk = parts.trunk.to(memory_format=torch.channels_last)

    def eager() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in last.split(32):
                trunk(batch)
        return time.perf_counter() - start

    def ours() -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(engine.callers) as pool:
            list(pool.map(engine.run, images.split(engine.batch_size)))
        return time.perf_counter() - start

    eager(), ours()
    return len(images) / median(eager), len(images) / median(ours)


def bare_pass(bench: Bench, graft: Graft, parts: Cut) -> float:
    """Return the seconds of ONNX Runtime alone over ELPV's decoded images, all cores on batches of 32."""
    file = bench.folder / "bare.onnx"
    samples = [bench.version.samples(split) for split in ("train", "validation")]
    images = np.concatenate([decoded(one, graft) for one in samples])
    if not file.exists():
        export_onnx(parts.trunk.eval(), file, images.shape[2:], images.shape[1], outputs=["activations"])
    session = open_session(file)
    session.run(None, {"image": images[:32]})

    def once() -> float:
        start = time.perf_counter()
        for first in range(0, len(images), 32):
            session.run(None, {"image": images[first : first + 32]})
        return time.perf_counter() - start

    return median(once)


def many_images(bench: Bench) -> float:
    """Return the seconds of the first run on 20,000 images: cut, export, frozen pass and ten epochs."""
    whole = [bench.version.samples(split) for split in ("train", "validation")]
    paths = [path for one in whole for path in one.paths]
    labels = np.concatenate([one.labels for one in whole])
    index = np.arange(MANY) % len(paths)
    samples = Samples([paths[i] for i in index], labels[index], None, [f"{i:064x}" for i in range(len(index))])
    graft = bench.graft()
    start = time.perf_counter()
    parts, _ = head_parts(bench, "tf_efficientnet_lite0")
    with fresh(bench.folder) as cache:
        features = Features(directory=str(cache))
        job = ActivationRequest(samples, EvalTransform(graft.preprocessing), 0, {"bench": MANY})
        make = functools.partial(make_engine, parts.trunk, features.store.trunk_file({"bench": 0}), execution=EXECUTION)
        (entry,) = features.open([job], make, parts.tail, parts.width)
        train_head(parts, entry.array, samples, batch_size=64)  # the default of a training
        return time.perf_counter() - start


def train_head(parts: Cut, activations: Matrix, samples: Samples, batch_size: int) -> float:
    """Return the activations per second of ten epochs of a head, with Lightning."""
    module = GraftModule(
        parts.tail, optimizer=functools.partial(torch.optim.AdamW, lr=0.01), schedule=constant, weight_decay=0.0
    )

    few = Samples(samples.paths[:batch_size], samples.labels[:batch_size], None, samples.sha256[:batch_size])
    validation = activation_loader(
        [activations.take(np.arange(batch_size), axis=0)], few, batch_size=batch_size, shuffle=False, seed=0
    )
    training = activation_loader([activations], samples, batch_size=batch_size, shuffle=True, seed=0)
    trainer = functools.partial(pl.Trainer, accelerator="cpu", devices=1, max_epochs=EPOCHS)
    with tempfile.TemporaryDirectory() as checkpoints:
        result = fit(
            module,
            trainer,
            (training, validation),
            FitDirectory(Path(checkpoints)),
            FitOptions(threads=1),
            show_progress=False,
        )
    return statistics.median(epoch["images_per_second"] for epoch in result.epochs[1:])


def machine() -> list[tuple[str, str]]:
    """Say what the figures were measured on."""
    cpu = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = psutil.virtual_memory().total / 2**30
    versions = f"torch {torch.__version__}, timm {timm.__version__}, ONNX Runtime {onnxruntime.__version__}"
    return [
        ("machine", f"{os.cpu_count()} cores, {memory:.0f} GiB, {cpu}"),
        ("software", f"Python {platform.python_version()}, {versions}, Lightning {pl.__version__}"),
        ("load before", f"{os.getloadavg()[0]:.1f}"),
    ]


def main() -> None:
    """Measure all and print the table."""
    print_facts("speed: ELPV, EfficientNet-Lite0 at 224 px", machine())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        rows = list(measure(bench))
    print_table("medians of three", ("what", "", "", "ratio"), rows)


def measure(bench: Bench) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of the table, and say each as soon as it is known."""
    parts = (_engines, _head, _stages, _passes, _where_it_does_not_pay)
    for row in itertools.chain.from_iterable(part(bench) for part in parts):
        say(" | ".join(row))
        yield row


def _engines(bench: Bench) -> Iterator[tuple[str, str, str, str]]:
    for number in range(3):
        eager, ours = engine_against_torch(bench, f"tf_efficientnet_lite{number}")
        name = f"frozen network, Lite{number}: engine / torch eager channels_last"
        yield name, f"{ours:.0f} images/s", f"{eager:.0f} images/s", f"{ours / eager:.1f}x"


def _head(bench: Bench) -> Iterator[tuple[str, str, str, str]]:
    parts, _ = head_parts(bench, "tf_efficientnet_lite0")
    activations = np.random.default_rng(0).normal(size=(MANY, parts.width)).astype(np.float32)
    samples = Samples([""] * MANY, np.arange(MANY) % 2, None, [str(number) for number in range(MANY)])
    for batch_size in (64, 256):
        speed = train_head(parts, activations, samples, batch_size)
        yield f"training a head, batches of {batch_size}", f"{speed:,.0f} activations/s", "", ""


def _stages(bench: Bench) -> Iterator[tuple[str, str, str, str]]:
    for trained, name in ((0, "head only"), (1, "last stage")):
        live, first, again = live_against_cached(bench, trained)
        yield (
            f"{name}, {EPOCHS} epochs, first run: live / cached",
            f"{live:.0f} s",
            f"{first:.1f} s",
            f"{live / first:.1f}x",
        )
        yield (
            f"{name}, {EPOCHS} epochs, cache there: live / cached",
            f"{live:.0f} s",
            f"{again:.1f} s",
            f"{live / again:.1f}x",
        )


def _where_it_does_not_pay(bench: Bench) -> Iterator[tuple[str, str, str, str]]:
    """Only the stem frozen: what crosses the boundary is 2.7 times as large as the image. One epoch, once."""
    live = bench.fit(7, cache=False, epochs=1, directory=bench.folder)
    with fresh(bench.folder) as cache:
        first = bench.fit(7, cache=True, epochs=1, directory=cache)
    yield (
        "all but the stem, 1 epoch, first run (once): live / cached",
        f"{live:.0f} s",
        f"{first:.0f} s",
        f"{live / first:.1f}x",
    )


def _passes(bench: Bench) -> Iterator[tuple[str, str, str, str]]:
    parts, graft = head_parts(bench, "tf_efficientnet_lite0")
    bare = bare_pass(bench, graft, parts)
    first = median(lambda: first_run(bench, 0))
    name = "head only, cached, first run / bare ONNX Runtime pass"
    yield f"{name}, ELPV", f"{first:.1f} s", f"{bare:.1f} s", f"{first / bare:.2f}x"
    images = sum(bench.version.num_images(split) for split in ("train", "validation"))
    many, bare_many = many_images(bench), bare / images * MANY
    yield f"{name}, {MANY:,} images (once)", f"{many:.0f} s", f"{bare_many:.0f} s", f"{many / bare_many:.2f}x"


if __name__ == "__main__":
    main()
