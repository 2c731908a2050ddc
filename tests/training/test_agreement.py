"""Cached and live training are the same training: without augmentation and dropout their losses agree, wherever cut."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader

from graftline.augment.policy import Evaluate
from graftline.augment.preprocess import Preprocessing
from graftline.data.loaders import Batch, make_loader
from graftline.data.version import Samples
from graftline.features.cut import cut
from graftline.features.loader import activation_loader
from graftline.freezing.plan import plan_from_depth
from graftline.training.fit import fit
from graftline.training.groups import Layers
from graftline.training.module import GraftModule
from graftline.training.schedule import warmup_cosine

SIZE, BATCH, EPOCHS, GROUPS = 32, 16, 3, 6
TOLERANCE = 1e-4
TRANSFORM = Evaluate(Preprocessing((SIZE, SIZE), (0.5,) * 3, (0.5,) * 3))


@pytest.fixture
def splits(colour_folder: Path) -> tuple[Samples, Samples]:
    """Training images that do not fill the last batch, and validation images."""
    paths = sorted(str(path) for path in colour_folder.rglob("*.png"))
    names = sorted({Path(path).parent.name for path in paths})
    labels = np.array([names.index(Path(path).parent.name) for path in paths])
    chosen = np.arange(len(paths)) % 3 != 0
    return tuple(  # type: ignore[return-value]
        Samples([path for path, is_in in zip(paths, which, strict=True) if is_in], labels[which], None)
        for which in (chosen, ~chosen)
    )


def build(frozen_groups: int) -> Any:
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=3, drop_rate=0.0, drop_path_rate=0.0)
    plan_from_depth(network, frozen_groups, "for this test").apply(network)
    return network.to(memory_format=torch.channels_last)


def activations(trunk: nn.Module, samples: Samples) -> np.ndarray:
    """Return what the trunk gives for the images (N, F) float32, one batch of all, in their order."""
    loader = make_loader(samples, TRANSFORM, batch_size=len(samples.paths), shuffle=False, seed=0, workers=0)
    (batch,) = loader
    with torch.inference_mode():
        return np.asarray(trunk(batch["image"].contiguous(memory_format=torch.channels_last)))


def losses(
    network: Any, trained: nn.Module, loaders: list[Callable[..., Any]], directory: Path, learning_rate: float
) -> np.ndarray:
    """Return the losses of a fit, (epochs, 2): in training and in validation."""
    train, validation = loaders
    module = GraftModule(
        trained,
        optimiser=functools.partial(torch.optim.AdamW, lr=learning_rate),
        schedule=warmup_cosine,
        weight_decay=0.05,
        layers=Layers.of(network),
        layer_decay=0.8,
    )

    def make_loaders(rank: int, world_size: int) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
        common: dict[str, Any] = {"batch_size": BATCH, "seed": 7, "rank": rank, "world_size": world_size}
        return train(shuffle=True, **common), validation(shuffle=False, **common)

    result = fit(
        module,
        functools.partial(pl.Trainer, accelerator="cpu", devices=1, max_epochs=EPOCHS, gradient_clip_val=1.0),
        make_loaders,
        directory=directory,
        on_epoch=lambda *_: None,
        show_progress=False,
    )
    return np.array([(epoch["train/loss"], epoch["val/loss"]) for epoch in result.history])


@pytest.mark.parametrize("frozen_groups", [GROUPS, GROUPS - 1, 3], ids=["head", "last stage", "three stages"])
def test_cached_and_live_training_agree(frozen_groups: int, splits: tuple[Samples, Samples], tmp_path: Path) -> None:
    rate = (
        0.01 if frozen_groups == GROUPS else 0.0003
    )  # as recommended deeper down; a larger one makes much of rounding
    network = build(frozen_groups)
    of_images: list[Callable[..., Any]] = [
        functools.partial(make_loader, samples, TRANSFORM, workers=0) for samples in splits
    ]
    live = losses(network, network, of_images, tmp_path / "live", rate)

    network = build(frozen_groups)
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    parts = cut(network, trainable, (SIZE, SIZE))
    of_activations: list[Callable[..., Any]] = [
        functools.partial(activation_loader, [activations(parts.trunk, samples)], samples) for samples in splits
    ]
    cached = losses(network, parts.tail, of_activations, tmp_path / "cached", rate)

    np.testing.assert_allclose(cached, live, rtol=0, atol=TOLERANCE)
    assert live[-1, 0] < live[0, 0] - 50 * TOLERANCE, "it learns: the losses of the epochs differ"
