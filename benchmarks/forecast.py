"""How good is the forecast? `python benchmarks/forecast.py` prints predicted and real seconds at several boundaries.

Both ways of training are timed for the head alone, and for training from the last, the fourth last and the second layer
group on; EfficientNet-Lite0 at 224 px on ELPV, an empty cache each time. A forecast is of use if the order is right,
live or cached first, and if it is within a factor of 2. On 2 cores it takes about half an hour.
"""

import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch

from graftline.augment.policy import Policy
from graftline.backbones.backbone import Backbone
from graftline.console import print_table, say
from graftline.data.ingest import Ingest
from graftline.data.sources.elpv import Elpv
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.features.cut import cut
from graftline.freezing.plan import FreezePlan, depth_in_words, plan_from_depth
from graftline.training.fit_directory import FitDirectory
from graftline.training.forecast import Forecast
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant
from graftline.training.setup import TrainingSetup
from graftline.training.source_decision import forecast

FROZEN_GROUPS, EPOCHS = (8, 7, 4, 1), 2
SPLIT = Split(train=0.6, validation=0.15, test=0.25, seed=0, existing=True)


def make_setup(version: DatasetVersion, features: Features) -> TrainingSetup:
    """Return the setup of a training whose network is new."""
    pl.seed_everything(0, verbose=False)
    return TrainingSetup(
        graft=Backbone("tf_efficientnet_lite0").build(len(version.class_names)),
        version=version,
        policy=Policy("none", None, {}),
        features=features,
        recipe=Recipe(patience=None),
        optimizer=functools.partial(torch.optim.AdamW, lr=0.001),
        schedule=constant,
        make_trainer=functools.partial(pl.Trainer, accelerator="cpu", devices=1),
        execution=Execution(),
        seed=0,
    )


def make_plan(setup: TrainingSetup, frozen_groups: int) -> FreezePlan:
    """Return the plan that freezes so many layer groups, applied to the network."""
    plan = plan_from_depth(setup.graft.network, frozen_groups, "benchmark", epochs=EPOCHS)
    plan.apply(setup.graft.network)
    return plan


def predicted(setup: TrainingSetup, plan: FreezePlan) -> Forecast:
    """Return the forecast where nothing is cached."""
    preprocessing = setup.graft.preprocessing
    parts = cut(setup.graft.network, plan.trainable, preprocessing.image_size, preprocessing.channels)
    images = sum(setup.version.num_images(split) for split in ("train", "validation"))
    return forecast(setup, plan, parts, images)


def real(version: DatasetVersion, frozen_groups: int, *, cache: bool) -> float:
    """Return the seconds of a training from the built network on."""
    with tempfile.TemporaryDirectory() as folder:
        setup = make_setup(version, Features(cache=cache, directory=str(Path(folder) / "cache"), max_gb=60))
        plan = make_plan(setup, frozen_groups)
        start = time.perf_counter()
        fit_phase(setup, plan, FitDirectory(Path(folder) / "fit"), show_progress=False)
        return time.perf_counter() - start


def rows(folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield a row for each boundary and way of training."""
    version = Ingest("elpv", None, Elpv(threshold=0.5), SPLIT, directory=str(folder / "data")).run().version
    for frozen_groups in FROZEN_GROUPS:
        setup = make_setup(version, Features(directory=str(folder / "cache")))
        told = predicted(setup, make_plan(setup, frozen_groups))
        found = Forecast(*(real(version, frozen_groups, cache=cache) for cache in (True, False)))
        order = "right" if (told.cached < told.live) == (found.cached < found.live) else "wrong"
        for way in ("cached", "live"):
            guess, truth = getattr(told, way), getattr(found, way)
            depth = depth_in_words(setup.graft.network, frozen_groups)
            row = (f"{depth}, {way}", f"{guess:.1f} s", f"{truth:.1f} s", f"{guess / truth:.2f}", order)
            say(" | ".join(row))
            yield row


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        measured = list(rows(Path(name)))
    print_table(f"forecast of {EPOCHS} epochs", ("boundary", "predicted", "real", "ratio", "order"), measured)
