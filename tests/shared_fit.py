"""A fit that several processes share, as torchrun starts them, and the same steps by a plain loop in one process."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from graftline.data.loaders import DrawBatches, DrawSampler
from graftline.data.version import Samples
from graftline.features.loader import activation_loader
from graftline.training.fit import fit
from graftline.training.fit_directory import FitDirectory
from graftline.training.module import GraftModule
from graftline.training.schedule import constant

FEATURES, CLASSES, BATCH, EPOCHS, RATE, SEED = 5, 3, 4, 3, 0.5, 7


def launched(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun sets."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}
    return {name: str(value) for name, value in {**shared, **own}.items()}


def noise(images: int) -> tuple[np.ndarray, Samples]:
    """Return activations (N, F) whose labels are drawn."""
    chance = np.random.default_rng(images)
    labels = chance.integers(0, CLASSES, images)
    return chance.normal(0, 1, (images, FEATURES)).astype(np.float32), Samples(
        [""] * images, labels, None, [""] * images
    )


def make_head() -> nn.Linear:
    """Return what is trained: two calls give the same weights."""
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES)


def fit_shared(folder: Path, images: int, rank: int, world_size: int) -> int:
    """Fit the head as one of several processes, and write its weights and losses."""
    (train, samples), (validation, validated) = noise(images), noise(images + 1)
    common: dict[str, Any] = {"batch_size": BATCH, "seed": SEED, "rank": rank, "world_size": world_size}
    loaders = (
        activation_loader([train], samples, shuffle=True, **common),
        activation_loader([validation], validated, shuffle=False, **common),
    )
    head = make_head()
    module = GraftModule(
        head, optimizer=functools.partial(torch.optim.SGD, lr=RATE), schedule=constant, weight_decay=0.0
    )
    make_trainer: Callable[..., pl.Trainer] = functools.partial(
        pl.Trainer, accelerator="cpu", devices=world_size, strategy="ddp", max_epochs=EPOCHS
    )
    history = fit(module, make_trainer, loaders, FitDirectory(folder / "fit"), show_progress=False)
    losses = [epoch["train/loss"] for epoch in history.epochs]
    last = torch.load(folder / "fit" / "last.ckpt", weights_only=True)["state_dict"]
    if rank == 0:
        torch.save({"losses": losses, "steps": history.steps, "weight": last["network.weight"]}, folder / "shared.pt")
    return 0


def fit_alone(images: int, world_size: int) -> dict[str, Any]:
    """Take the steps of `fit_shared` in a plain loop, each on all images that its processes have together."""
    train, samples = noise(images)
    inputs, labels = torch.from_numpy(train), torch.from_numpy(samples.labels)
    head, losses, steps = make_head(), list[float](), 0
    optimizer = torch.optim.SGD(head.parameters(), lr=RATE)
    for epoch in range(EPOCHS):
        parts = []
        for rank in range(world_size):
            sampler = DrawSampler(images, shuffle=True, seed=SEED, rank=rank, world_size=world_size)
            sampler.set_epoch(epoch)
            parts.append([[draw.index for draw in batch] for batch in DrawBatches(sampler, BATCH)])
        total = torch.zeros(())
        for together in zip(*parts, strict=True):
            rows = [row for part in together for row in part]
            loss = nn.functional.cross_entropy(head(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
            optimizer.step()
            total += loss.detach() * len(rows)
            steps += 1
        losses.append(float(total) / images)
    return {"losses": losses, "steps": steps, "weight": head.weight.detach()}
