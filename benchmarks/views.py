"""How many augmented views of each image should be cached? `python benchmarks/views.py [FASHION_MNIST_FOLDER]`.

Trains the head of EfficientNet-Lite0 on cached activations of 0 (the plain image), 1, 2 and 4 views of the policy
`light`, and prints the validation scores of the best epoch. On ELPV, and on 2,000 images of Fashion-MNIST if its folder
is given (Debian's package dataset-fashion-mnist has it); the test splits are not looked at.
"""

import functools
import gzip
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from graftline.augment.policy import Policy
from graftline.backbones.backbone import Backbone
from graftline.console import print_table, say
from graftline.data.ingest import Ingest
from graftline.data.sources.elpv import Elpv
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.freezing.rules import AllButHead
from graftline.pipeline.cli.hydra_conf import CONF
from graftline.training.fit_directory import FitDirectory
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.schedule import warmup_cosine
from graftline.training.setup import TrainingSetup
from graftline.training.trial import make_freeze_context

VIEWS, SEEDS, IMAGES = (0, 1, 2, 4), (0, 1), 2_000
SPLIT = Split(train=0.6, validation=0.15, test=0.25, seed=0, existing=True)


def light() -> Policy:
    """Return the policy of conf/augment/light.yaml."""
    policy: Policy = instantiate(OmegaConf.load(CONF / "augment" / "light.yaml"), _convert_="all")
    return policy


def fashion_mnist(source: Path, folder: Path) -> DatasetVersion:
    """Ingest the first images of Fashion-MNIST, written as files."""
    with gzip.open(source / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(source / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    for number, (image, label) in enumerate(zip(images[:IMAGES], labels[:IMAGES], strict=True)):
        (folder / "images" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "images" / str(label) / f"{number:05}.png")
    return Ingest("fashion", str(folder / "images"), Folder(), SPLIT, directory=str(folder / "data")).run().version


def scores(version: DatasetVersion, views: int, seed: int, folder: Path) -> tuple[float, float]:
    """Return validation log loss and accuracy of the best epoch."""
    pl.seed_everything(seed, verbose=False)
    graft = Backbone("tf_efficientnet_lite0").build(len(version.class_names))
    setup = TrainingSetup(
        graft=graft,
        version=version,
        policy=light(),
        features=Features(views=views, directory=str(folder / "cache")),
        recipe=Recipe(),
        optimizer=functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.05),
        schedule=warmup_cosine,
        make_trainer=functools.partial(pl.Trainer, accelerator="cpu", devices=1, gradient_clip_val=1.0),
        execution=Execution(),
        seed=seed,
    )
    with tempfile.TemporaryDirectory(dir=folder) as name:
        directory = FitDirectory(Path(name))
        (plan,) = AllButHead().decide(make_freeze_context(setup, directory)).plans
        best = fit_phase(setup, plan, directory, show_progress=False).history.best
    return best["val/loss"], best["val/accuracy"]


def rows(folder: Path, fashion: Path | None) -> Iterator[tuple[str, ...]]:
    """Yield a row for each data set and number of views, means over the seeds."""
    versions = [Ingest("elpv", None, Elpv(threshold=0.5), SPLIT, directory=str(folder / "data")).run().version]
    if fashion is not None:
        versions.append(fashion_mnist(fashion, folder))
    for version in versions:
        for views in VIEWS:
            measured = np.array([scores(version, views, seed, folder) for seed in SEEDS])
            (loss, accuracy), spread = measured.mean(axis=0), np.ptp(measured[:, 0])
            row = (version.name, str(views), f"{loss:.3f}", f"{spread:.3f}", f"{100 * accuracy:.1f} %")
            say(" | ".join(row))
            yield row


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        measured_rows = list(rows(Path(name), Path(sys.argv[1]) if len(sys.argv) > 1 else None))
    columns = ("data set", "views", "validation log loss", "range over seeds", "accuracy")
    print_table("augmented views in the cache", columns, measured_rows)
