"""Batches of cached activations: those that the loader of images gives, in memory or from disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.augment.policy import EvalTransform
from graftline.augment.preprocess import Preprocessing
from graftline.data.loaders import draw_batches, make_loader
from graftline.data.version import Samples
from graftline.features.activation_table import GatheredRows, Matrix
from graftline.features.loader import activation_loader

PREPROCESSING = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)
IMAGES = 60


@pytest.fixture
def samples(color_folder: Path) -> Samples:
    paths = sorted(str(path) for path in color_folder.rglob("*.png"))
    return Samples(paths, np.arange(IMAGES) % 3, np.linspace(0, 1, IMAGES, dtype=np.float32), paths)


def pixels(samples: Samples) -> np.ndarray:
    """Return the images as a matrix, from the loader of images."""
    transform, size = EvalTransform(PREPROCESSING), len(samples.paths)
    loader = make_loader(samples, transform, batch_size=size, shuffle=False, seed=0, workers=0)
    result: np.ndarray = next(iter(loader))["image"].flatten(1).numpy()
    return result


def _same_epoch(live: Any, cached: Any, epoch: int) -> int:
    for loader in (live, cached):
        draw_batches(loader).sampler.set_epoch(epoch)
    batches = 0
    for one, other in zip(live, cached, strict=True):
        torch.testing.assert_close(other["image"], one["image"].flatten(1), rtol=0, atol=0)
        assert all(torch.equal(one[name], other[name]) for name in ("label", "weight", "index"))
        assert [one[name].dtype for name in one] == [other[name].dtype for name in one]
        batches += 1
    assert batches == len(cached) == len(live)
    return batches


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("images", [49, 53])
def test_batches_are_those_of_the_live_loader(
    samples: Samples, world_size: int, shuffle: bool, weighed: bool, images: int
) -> None:
    weights = samples.weights if weighed else None
    odd = Samples(samples.paths[:images], samples.labels[:images], weights, samples.sha256[:images])
    activations = pixels(odd)
    for rank in range(world_size):
        common: dict[str, Any] = {"batch_size": 8, "shuffle": shuffle, "seed": 5}
        common |= {"rank": rank, "world_size": world_size}
        live = make_loader(odd, EvalTransform(PREPROCESSING), workers=0, **common)
        cached = activation_loader([activations], odd, **common)
        for epoch in range(2):
            _same_epoch(live, cached, epoch)


@pytest.mark.parametrize("gathered", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_does_not_fit_into_memory_is_read_from_disk(
    dtype: Any, gathered: bool, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = pixels(samples).astype(dtype)
    array.tofile(tmp_path / "a")
    mapped: Matrix = np.memmap(tmp_path / "a", dtype, mode="c", shape=array.shape)
    if gathered:
        part, row = np.arange(IMAGES) % 2, np.arange(IMAGES)
        mapped = GatheredRows([np.asarray(mapped), np.asarray(mapped)], part, row)
    in_memory = list(activation_loader([mapped], samples, batch_size=16, shuffle=True, seed=0))
    monkeypatch.setattr("graftline.features.loader.MEMORY_SHARE", 0.0)
    on_disk = activation_loader([mapped], samples, batch_size=16, shuffle=True, seed=0)
    for one, other in zip(in_memory, on_disk, strict=True):
        assert other["image"].dtype == torch.float32
        assert torch.equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["image"], array[one["index"]].astype(np.float32))
