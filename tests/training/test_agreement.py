"""Cached and live training are the same training: without augmentation and dropout their losses agree, wherever cut."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from graftline.features.cache import Features
from graftline.freezing.plan import plan_from_depth
from graftline.training.fit_directory import FitDirectory
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.schedule import warmup_cosine
from graftline.training.setup import TrainingSetup

MakeSetup = Callable[..., TrainingSetup]
GROUPS, EPOCHS = 6, 3
TOLERANCE = 1e-4


def losses(frozen_groups: int, features: Features, make_setup: MakeSetup, directory: Path) -> np.ndarray:
    """Return the losses of a fit of 36 images in batches of 16, (epochs, 2): in training and in validation."""
    # as recommended; a larger one deeper down makes much of rounding
    learning_rate = 0.01 if frozen_groups == GROUPS else 0.0003
    setup = make_setup(
        network={"drop_rate": 0.0, "drop_path_rate": 0.0},
        features=features,
        recipe=Recipe(batch_size=16, workers=0, layer_decay=0.8, patience=None),
        optimizer=functools.partial(torch.optim.AdamW, lr=None, weight_decay=0.05),  # type: ignore[arg-type]  # as the plan says
        schedule=warmup_cosine,
        make_trainer=functools.partial(pl.Trainer, accelerator="cpu", devices=1, gradient_clip_val=1.0),
        seed=7,
    )
    network = setup.graft.network
    plan = plan_from_depth(network, frozen_groups, "for this test", epochs=EPOCHS, learning_rate=learning_rate)
    result = fit_phase(setup, plan, FitDirectory(directory), show_progress=False)
    assert (result.cache_change is not None) == bool(features.cache)
    return np.array([(epoch["train/loss"], epoch["val/loss"]) for epoch in result.history.epochs])


@pytest.mark.parametrize(
    ("frozen_groups", "precision"),
    [(GROUPS, "auto"), (GROUPS, "float32"), (GROUPS - 1, "float32"), (3, "float32")],
    ids=["head, float16", "head", "last stage", "three stages"],
)
def test_cached_and_live_training_agree(
    frozen_groups: int, precision: str, make_setup: MakeSetup, tmp_path: Path
) -> None:
    """Through cut, ONNX Runtime and the files of the cache."""
    cache = Features(directory=str(tmp_path / "cache"), precision=precision)  # type: ignore[arg-type]
    cached = losses(frozen_groups, cache, make_setup, tmp_path / "cached")
    live = losses(frozen_groups, Features(cache=False), make_setup, tmp_path / "live")

    np.testing.assert_allclose(cached, live, rtol=0, atol=TOLERANCE)
    assert live[-1, 0] < live[0, 0] - 50 * TOLERANCE, "it learns: the losses of the epochs differ"
    kept = {file.read_text().count('"dtype": "float16"') for file in (tmp_path / "cache").glob("*/*/segment.json")}
    assert kept == {int(precision == "auto")}
