"""Cached and live training are the same training: without augmentation and dropout their losses agree, wherever cut."""

import functools
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch

from graftline.augment.policy import Policy
from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Graft
from graftline.backbones.weights import Weights
from graftline.data.version import DatasetVersion
from graftline.features.cache import Features
from graftline.freezing.plan import plan_from_depth
from graftline.training.fitting import TrainingSetup
from graftline.training.recipe import Recipe
from graftline.training.schedule import warmup_cosine

GROUPS, EPOCHS = 6, 3
TOLERANCE = 1e-4


def losses(frozen_groups: int, features: Features, version: DatasetVersion, directory: Path) -> np.ndarray:
    """Return the losses of a fit of 36 images in batches of 16, (epochs, 2): in training and in validation."""
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=3, drop_rate=0.0, drop_path_rate=0.0)
    graft = Graft(network, Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), Weights("file", "here", "0" * 64))
    # as recommended; a larger one deeper down makes much of rounding
    learning_rate = 0.01 if frozen_groups == GROUPS else 0.0003
    plan = plan_from_depth(network, frozen_groups, "for this test", epochs=EPOCHS, learning_rate=learning_rate)
    fitting = TrainingSetup(
        version,
        Policy("none", None, {}),
        features,
        Recipe(batch_size=16, workers=0, layer_decay=0.8, patience=None),
        functools.partial(torch.optim.AdamW, lr=None, weight_decay=0.05),  # type: ignore[arg-type]  # as the plan says
        warmup_cosine,
        functools.partial(pl.Trainer, accelerator="cpu", devices=1, gradient_clip_val=1.0),
        seed=7,
    )
    fitted = fitting.run(graft, plan, directory, on_epoch=lambda *_: None, show_progress=False)
    assert (fitted.cache_change is not None) == bool(features.cache)
    return np.array([(epoch["train/loss"], epoch["val/loss"]) for epoch in fitted.fit.history])


@pytest.mark.parametrize(
    ("frozen_groups", "precision"),
    [(GROUPS, "auto"), (GROUPS, "float32"), (GROUPS - 1, "float32"), (3, "float32")],
    ids=["head, float16", "head", "last stage", "three stages"],
)
def test_cached_and_live_training_agree(
    frozen_groups: int, precision: str, version: DatasetVersion, tmp_path: Path
) -> None:
    """Through cut, ONNX Runtime and the files of the cache."""
    cache = Features(directory=str(tmp_path / "cache"), precision=precision)  # type: ignore[arg-type]
    cached = losses(frozen_groups, cache, version, tmp_path / "cached")
    live = losses(frozen_groups, Features(cache=False), version, tmp_path / "live")

    np.testing.assert_allclose(cached, live, rtol=0, atol=TOLERANCE)
    assert live[-1, 0] < live[0, 0] - 50 * TOLERANCE, "it learns: the losses of the epochs differ"
    kept = {file.read_text().count('"dtype": "float16"') for file in (tmp_path / "cache").glob("*/*/segment.json")}
    assert kept == {int(precision == "auto")}
