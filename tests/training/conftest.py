"""A small dataset version and a setup that the fits of this room share."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch

from graftline.augment.policy import Policy
from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Graft
from graftline.backbones.weights import Weights
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant
from graftline.training.setup import TrainingSetup

MakeSetup = Callable[..., TrainingSetup]


@pytest.fixture(scope="session")
def version(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """The colored squares: 36 for training, 12 for validation, 12 for the test."""
    split = Split(train=0.6, validation=0.2, test=0.2, seed=0, existing=True)
    ingest = Ingest(None, str(color_folder), Folder(), split, directory=str(tmp_path_factory.mktemp("data")))
    return ingest.run().version


@pytest.fixture(scope="session")
def judged_version(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """The colored squares: 18 for training, 30 for validation, enough to choose by, 12 for the test."""
    split = Split(train=0.3, validation=0.5, test=0.2, seed=0, existing=True)
    ingest = Ingest(None, str(color_folder), Folder(), split, directory=str(tmp_path_factory.mktemp("judged")))
    return ingest.run().version


@pytest.fixture
def make_setup(version: DatasetVersion, tmp_path: Path) -> MakeSetup:
    """Return what makes the setup of a tiny training on the CPU, with changes; each has a network of its own."""

    def make(*, network: dict[str, Any] | None = None, **changes: Any) -> TrainingSetup:
        torch.manual_seed(0)
        built = timm.create_model("test_efficientnet", num_classes=3, **(network or {}))
        settings: dict[str, Any] = {
            "graft": Graft(built, Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), Weights("file", "here", "0" * 64)),
            "version": version,
            "policy": Policy("none", None, {}),
            "features": Features(directory=str(tmp_path / "cache")),
            "recipe": Recipe(batch_size=12, workers=0),
            "optimizer": functools.partial(torch.optim.AdamW, lr=None),  # type: ignore[arg-type]  # as the plan says
            "schedule": constant,
            "make_trainer": functools.partial(pl.Trainer, accelerator="cpu", devices=1),
            "execution": Execution(),
            "seed": 0,
        }
        return TrainingSetup(**{**settings, **changes})

    return make
