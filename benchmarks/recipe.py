"""Does a change of the recipe pay? `python -m benchmarks.recipe [--set letters] [--seeds 0 1] [--head]`.

Trains EfficientNet-Lite0 on a part of a set of `benchmarks.accuracy.sets`, which is written anew: by the recipe, and
with one change after the other, all by graftline's own fit. Prints how each does on the test images: accuracy with its
interval, its difference to the first row's, image by image, and the log loss, as it is and calibrated on the validation
images, as a bundle's is. The table of docs/freezing-measurements.md (`--epochs 5`, one seed) took 19 minutes, on one of
two cores that others used too: 100 to 250 s a row. `--changes` takes some of them.
"""

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from benchmarks.accuracy.intervals import paired, wilson
from benchmarks.accuracy.sets.catalog import SETS
from benchmarks.accuracy.sets.folders import write
from graftline.augment.policy import EvalTransform, Policy
from graftline.backbones.backbone import Backbone
from graftline.console import print_table, say
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.execution import Execution
from graftline.features.cache import ActivationRequest, Features, ImageBatcher
from graftline.freezing.batchnorm import BatchNormChoice
from graftline.freezing.rules import AllButHead, Names, Nothing
from graftline.training.batchnorm import choose_statistics, prepare_statistics
from graftline.training.fit_directory import FitDirectory
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.schedule import warmup_cosine
from graftline.training.setup import TrainingSetup
from graftline.training.temperatures import losses_by_temperature
from graftline.training.trial import make_freeze_context

NETWORK, BATCH = "tf_efficientnet_lite0", 100  # images that are tested at a time


@dataclass(frozen=True)
class Change:
    """A change of the recipe.

    Attributes:
        key: that asks `make train` for it, or ``none``.
        learning_rate: None: the freeze rule's own.
        weight_decay: AdamW's.
        batchnorm: what happens to BatchNorm's statistics.
        drop_path_rate: stochastic depth.
        head: what the head reads.
        recipe: arguments of ``Recipe``.
        frozen: patterns of the names of what stays frozen; without any, everything is trained, or the head alone.
    """

    key: str
    learning_rate: float | None = None
    weight_decay: float = 0.05
    batchnorm: BatchNormChoice = "auto"
    drop_path_rate: float = 0.0
    head: Literal["last", "stages"] = "last"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    frozen: Sequence[str] = ()


CHANGES = (
    Change("none"),
    Change("freeze.batchnorm=adapted", batchnorm="adapted"),
    Change("freeze.batchnorm=frozen", batchnorm="frozen"),
    Change("freeze.batchnorm=trained", batchnorm="trained"),
    Change("optim.lr=0.003", learning_rate=0.003),
    Change("train.label_smoothing=0.1", recipe={"label_smoothing": 0.1}),
    Change("backbone.drop_path_rate=0.2", drop_path_rate=0.2),
    Change("train.layer_decay=0.8", recipe={"layer_decay": 0.8}),
    Change("train.ema_decay=0.99", recipe={"ema_decay": 0.99}),
    Change("train.batch_size=64", recipe={"batch_size": 64}),
    Change("optim.weight_decay=0", weight_decay=0.0),
    Change("optim.weight_decay=0.2", weight_decay=0.2),
    Change("freeze=names freeze.frozen=[*conv*]", frozen=["*conv*"]),
    Change("freeze=names freeze.frozen=[*conv*] optim.lr=0.01", learning_rate=0.01, frozen=["*conv*"]),
    Change("backbone.head=stages", head="stages"),
)
OF_A_HEAD = (  # the other changes leave a head as it is
    *CHANGES[:2],
    *(Change(f"optim.lr={rate}", learning_rate=rate) for rate in (0.001, 0.0025, 0.01)),
    CHANGES[-1],
)


@dataclass(frozen=True)
class Work:
    """How much is done: images of each split at most, epochs, the network's input in px."""

    images: int
    validated: int
    tested: int
    epochs: int | None
    image_size: int | None
    head: bool


@dataclass(frozen=True)
class Outcome:
    """What a trained network made of N test images: whether it is right (N,), and the mean log losses."""

    hits: np.ndarray
    log_loss: float
    calibrated: float


def read_set(name: str, work: Work, folder: Path) -> DatasetVersion:
    """Write a set and ingest it; of its images a part is used, each class in proportion."""
    say(write(SETS[name](), folder / name))
    split = Split(seed=0, existing=True)
    version = Ingest(name, str(folder / name), Folder(), split, directory=str(folder / "data")).run().version
    return version.part(train=work.images, validation=work.validated, test=work.tested)


def train(change: Change, version: DatasetVersion, work: Work, seed: int, folder: Path) -> Outcome:
    """Train as `make train augment=none` does with a change, and test the best epoch."""
    pl.seed_everything(seed, verbose=False)
    kind = functools.partial(Names, change.frozen) if change.frozen else AllButHead if work.head else Nothing
    given: dict[str, Any] = {"epochs": work.epochs, "learning_rate": change.learning_rate}
    rule = kind(**{key: value for key, value in given.items() if value is not None}, batchnorm=change.batchnorm)
    backbone = Backbone(NETWORK, head=change.head, image_size=work.image_size, drop_path_rate=change.drop_path_rate)
    setup = TrainingSetup(
        graft=backbone.build(version.class_names),
        version=version,
        policy=Policy("none", None, {}),
        features=Features(directory=str(folder / "cache")),
        recipe=Recipe(**change.recipe),
        optimizer=functools.partial(torch.optim.AdamW, lr=None, weight_decay=change.weight_decay),  # type: ignore[arg-type]  # the plan's
        schedule=warmup_cosine,
        make_trainer=functools.partial(pl.Trainer, accelerator="cpu", devices=1, gradient_clip_val=1.0),
        execution=Execution(),
        seed=seed,
        batchnorm=choose_statistics(change.batchnorm, version.num_images("train"), pretrained=True),
    )
    with tempfile.TemporaryDirectory(dir=folder) as name:
        directory = FitDirectory(Path(name))
        prepare_statistics(setup, directory)
        (plan,) = rule.decide(make_freeze_context(setup, directory)).plans
        fit_phase(setup, plan, directory, show_progress=False)
    return score(setup)


def score(setup: TrainingSetup) -> Outcome:
    """Test a trained network, with the temperature that suits the validation images best."""
    validated, labels = logits(setup, "validation")
    temperature = int(losses_by_temperature(validated, labels).mean(0).argmin())
    tested, labels = logits(setup, "test")
    calibrated = losses_by_temperature(tested, labels).mean(0)[temperature]
    plain = torch.nn.functional.cross_entropy(tested, labels)
    return Outcome((tested.argmax(1) == labels).double().numpy(), float(plain), float(calibrated))


@torch.inference_mode()
def logits(setup: TrainingSetup, split: str) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) and labels (N,) of a split."""
    network, samples = setup.graft.network.eval(), setup.version.samples(split)
    images = ImageBatcher(ActivationRequest(samples, EvalTransform(setup.graft.preprocessing), 0, {}))
    rows = torch.arange(len(samples.paths)).split(BATCH)  # type: ignore[no-untyped-call]  # as torch has it
    return torch.cat([network(images(some.tolist())) for some in rows]), torch.tensor(samples.labels)


def table(changes: Sequence[Change], results: Sequence[Sequence[Outcome]]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each change, means over the seeds."""
    right = [np.mean([one.hits for one in of_seeds], axis=0) for of_seeds in results]
    for change, hits, of_seeds in zip(changes, right, results, strict=True):
        accuracy = float(hits.mean())
        low, high = wilson(accuracy, len(hits))
        ahead = (
            ""
            if hits is right[0]
            else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in paired(hits, right[0])))
        )
        losses = (np.mean([getattr(one, name) for one in of_seeds]) for name in ("log_loss", "calibrated"))
        interval = f"{100 * accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        yield change.key, interval, ahead, *(f"{loss:.3f}" for loss in losses)


def main() -> None:
    """Train, test and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(SETS), default="letters", dest="name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of head, order and dropout")
    parser.add_argument("--images", type=int, default=1_000, help="training images")
    parser.add_argument("--validated", type=int, default=2_000, help="validation images, by which the epoch is chosen")
    parser.add_argument("--tested", type=int, default=1_000, help="test images")
    parser.add_argument("--epochs", type=int, help="as the freeze rule has it")
    parser.add_argument("--image-size", type=int, default=64, help="px; 0: the network's own")
    keys = list(dict.fromkeys(change.key for change in (*CHANGES, *OF_A_HEAD)))
    parser.add_argument("--changes", choices=keys, nargs="+", default=keys, help="compared with the first of them")
    parser.add_argument("--head", action="store_true", help="the head alone, by its rate and by what it reads")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", Execution().num_threads)))
    work = Work(asked.images, asked.validated, asked.tested, asked.epochs, asked.image_size or None, asked.head)
    changes, results = [one for one in (OF_A_HEAD if work.head else CHANGES) if one.key in asked.changes], []
    with tempfile.TemporaryDirectory() as name:
        version = read_set(asked.name, work, Path(name))
        for change in changes:
            begun = time.perf_counter()
            results.append([train(change, version, work, seed, Path(name)) for seed in asked.seeds])
            *_, row = table(changes[: len(results)], results)
            say(f"{' | '.join(row)} | {time.perf_counter() - begun:.0f} s")
        counts = {split: version.num_images(split) for split in ("train", "validation", "test")}
    said = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    title = f"{asked.name}, {'head alone' if work.head else 'everything trained'}: {said} images"
    print_table(
        title, ("change", "test accuracy", "difference", "log loss", "calibrated"), list(table(changes, results))
    )


if __name__ == "__main__":
    main()
