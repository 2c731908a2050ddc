"""Activations are computed once: whatever happens in between, nothing is lost, believed wrongly or done twice."""

import json
import multiprocessing
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from graftline.augment.policy import Augment, EvalTransform, Policy
from graftline.augment.preprocess import Preprocessing
from graftline.console import console
from graftline.data.loaders import make_loader
from graftline.data.version import Samples
from graftline.errors import UserError
from graftline.features import shards
from graftline.features.cache import ActivationRequest, CacheFullError, Features
from graftline.features.engine import Engine
from graftline.features.loader import activation_loader
from graftline.features.store import ActivationStore

PREPROCESSING = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)
WIDTH = 3 * 8 * 8
TAIL = nn.Linear(WIDTH, 3)
IMAGES = 60


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD_IMAGES", 16)  # 60 images: 16, 16, 16, 12


@pytest.fixture
def samples(color_folder: Path) -> Samples:
    paths = sorted(str(path) for path in color_folder.rglob("*.png"))
    assert len(paths) == IMAGES
    return Samples(paths, np.arange(IMAGES) % 3, np.linspace(0, 1, IMAGES, dtype=np.float32), paths)


class Pixels:
    """A trunk that hands the pixels on, counts the images, and may fail."""

    def __init__(self, stop_after: int = 10**9, factor: float = 1.0) -> None:
        self.images = 0
        self.built = 0
        self._stop_after = stop_after
        self._factor = factor

    def __call__(self, images: Tensor) -> Engine:
        assert images.shape[1:] == (3, 8, 8)
        self.built += 1
        return Engine(self._run, "pixels", callers=1, batch_size=4)

    def _run(self, images: Tensor) -> np.ndarray:
        if self.images >= self._stop_after:
            raise KeyboardInterrupt
        self.images += len(images)
        result: np.ndarray = (images.flatten(1) * self._factor).numpy()
        return result


def job(samples: Samples, **key: Any) -> ActivationRequest:
    return ActivationRequest(samples, EvalTransform(PREPROCESSING), 0, {"split": "train", **key})


def pixels(samples: Samples) -> np.ndarray:
    """Return what the cache should give, from the loader of images."""
    loader = make_loader(samples, EvalTransform(PREPROCESSING), batch_size=IMAGES, shuffle=False, seed=0, workers=0)
    result: np.ndarray = next(iter(loader))["image"].flatten(1).numpy()
    return result


def entries(features: Features) -> list[Path]:
    return sorted(path.parent for path in Path(features.directory).glob("*/entry.json"))


def said(do: Callable[[], object]) -> str:
    with console.capture() as capture:
        do()
    return capture.get()


def test_they_are_computed_once_and_read_afterwards(samples: Samples, tmp_path: Path) -> None:
    features, trunk = Features(directory=str(tmp_path), precision="float32"), Pixels()
    (first,) = features.open([job(samples)], trunk, TAIL, WIDTH)
    np.testing.assert_array_equal(first.array, pixels(samples))
    assert (trunk.images, trunk.built) == (IMAGES, 1)
    (second,) = features.open([job(samples)], trunk, TAIL, WIDTH)
    np.testing.assert_array_equal(first.array, second.array)
    assert (trunk.images, trunk.built) == (IMAGES, 1), "read from disk"
    features.open([job(samples), job(samples, view=1)], trunk, TAIL, WIDTH)
    assert (trunk.images, trunk.built) == (2 * IMAGES, 2), "another key, another pass"


def test_what_an_entry_says_of_itself(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path))
    text = said(lambda: features.open([job(samples, dataset="abc")], Pixels(), TAIL, WIDTH))
    assert "23.0 KB of activations (60 images of 384 bytes" in text
    (folder,) = entries(features)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    marks = {f"shards/{number:05}" for number in range(4)}
    assert files == {"entry.json", "activations.bin", "used", "writing", *marks}
    entry = json.loads((folder / "entry.json").read_text())
    assert entry["key"] == {"split": "train", "dataset": "abc", "precision": "auto"}
    assert [entry[name] for name in ("images", "width", "dtype")] == [IMAGES, WIDTH, "float16"]
    features.open([job(samples, dataset="abc")], Pixels(), TAIL, WIDTH)
    assert json.loads((folder / "entry.json").read_text())["used"] > entry["used"]


def test_a_pass_that_is_killed_goes_on_where_it_was(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path), precision="float32")
    with pytest.raises(KeyboardInterrupt):
        features.open([job(samples)], Pixels(stop_after=40), TAIL, WIDTH)
    rest = Pixels()
    (activations,) = features.open([job(samples)], rest, TAIL, WIDTH)
    assert rest.images == IMAGES - 32, "two shards were there"
    np.testing.assert_array_equal(activations.array, pixels(samples))


def test_a_pass_that_is_killed_before_its_first_shard_leaves_nothing(samples: Samples, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Features(directory=str(tmp_path)).open([job(samples)], Pixels(stop_after=8), TAIL, WIDTH)
    assert not list(tmp_path.iterdir())


def test_a_flipped_byte_costs_one_shard(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path), precision="float32")
    features.open([job(samples)], Pixels(), TAIL, WIDTH)
    (folder,) = entries(features)
    content = bytearray((folder / "activations.bin").read_bytes())
    content[20 * WIDTH * 4] ^= 1  # of image 20, in the second shard
    (folder / "activations.bin").write_bytes(content)
    trunk = Pixels()
    text = said(lambda: features.open([job(samples)], trunk, TAIL, WIDTH))
    assert "1 of 4 shards of cached activations are damaged" in text
    assert trunk.images == 16
    (activations,) = features.open([job(samples)], trunk, TAIL, WIDTH)
    np.testing.assert_array_equal(activations.array, pixels(samples))


def test_a_truncated_file_is_computed_again(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path), precision="float32")
    features.open([job(samples)], Pixels(), TAIL, WIDTH)
    (folder,) = entries(features)
    with (folder / "activations.bin").open("r+b") as file:
        file.truncate(1000)
    (activations,) = features.open([job(samples)], Pixels(), TAIL, WIDTH)
    np.testing.assert_array_equal(activations.array, pixels(samples))


def _compute(samples: Samples, directory: str, started: Any, counts: Any) -> None:
    shards.MAX_SHARD_IMAGES = 16
    started.wait()
    trunk = Pixels()
    (activations,) = Features(directory=directory, precision="float32").open([job(samples)], trunk, TAIL, WIDTH)
    counts.put((trunk.images, float(activations.array.sum(dtype=np.float64))))


def test_two_processes_share_the_work(samples: Samples, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started, counts = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_compute, args=(samples, str(tmp_path), started, counts)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [counts.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(images for images, _ in results) == [0, IMAGES], "the second takes what the first has written"
    expected = float(pixels(samples).sum(dtype=np.float64))
    assert [total for _, total in results] == pytest.approx([expected, expected])


def test_half_precision_where_no_prediction_changes(samples: Samples, tmp_path: Path) -> None:
    (activations,) = Features(directory=str(tmp_path)).open([job(samples)], Pixels(), TAIL, WIDTH)
    assert activations.array.dtype == np.float16
    with torch.inference_mode():
        kept, exact = (
            TAIL(torch.from_numpy(array.astype(np.float32))).softmax(1)
            for array in (activations.array, pixels(samples))
        )
    torch.testing.assert_close(kept, exact, rtol=0, atol=1e-3)


def test_full_precision_where_a_prediction_would_change(samples: Samples, tmp_path: Path) -> None:
    class LowBits(nn.Module):
        def forward(self, activations: Tensor) -> Tensor:
            return 5 * torch.remainder(1e4 * activations[:, :3], 1)

    sensitive = LowBits()
    sensitive.train()
    features = Features(directory=str(tmp_path))
    text = said(lambda: features.open([job(samples)], Pixels(factor=1 / 3), sensitive, WIDTH))
    assert "kept as float32: float16 would change a probability by" in text
    assert sensitive.training
    (activations,) = features.open([job(samples)], Pixels(), sensitive, WIDTH)
    np.testing.assert_array_equal(activations.array, pixels(samples) * np.float32(1 / 3))


def test_too_large_for_half_precision_in_the_first_shard(samples: Samples, tmp_path: Path) -> None:
    (activations,) = Features(directory=str(tmp_path)).open([job(samples)], Pixels(factor=1e6), TAIL, WIDTH)
    np.testing.assert_array_equal(activations.array, pixels(samples) * np.float32(1e6))


def test_too_large_for_half_precision_later(samples: Samples, tmp_path: Path) -> None:
    class Growing(Pixels):
        def _run(self, images: Tensor) -> np.ndarray:
            result = super()._run(images)
            return result * np.float32(1e6) if 40 <= self.images < IMAGES else result

    features, trunk = Features(directory=str(tmp_path)), Growing()
    text = said(lambda: features.open([job(samples)], trunk, TAIL, WIDTH))
    assert "too large for float16" in text
    (activations,) = features.open([job(samples)], trunk, TAIL, WIDTH)
    assert activations.array.dtype == np.float32
    assert np.isfinite(activations.array).all()


def test_one_larger_than_the_limit_is_refused_before_anything_runs(samples: Samples, tmp_path: Path) -> None:
    trunk = Pixels()
    with pytest.raises(CacheFullError, match=r"23.0 KB, more than the 20.0 KB of features.max_gb"):
        Features(directory=str(tmp_path), max_gb=20e-6).open([job(samples)], trunk, TAIL, WIDTH)
    assert trunk.built == 0
    assert not list(tmp_path.iterdir())


def test_a_limit_that_is_none_is_a_mistake() -> None:
    for limit in (-1.0, float("nan")):
        with pytest.raises(UserError, match=r"features\.max_gb"):
            Features(max_gb=limit)


def test_the_one_not_used_for_longest_makes_room(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path), max_gb=70e-6)  # three entries of 23 KB
    for name in "abc":
        features.open([job(samples, name=name)], Pixels(), TAIL, WIDTH)
    features.open([job(samples, name="a")], Pixels(), TAIL, WIDTH)
    features.open([job(samples, name="d")], Pixels(), TAIL, WIDTH)
    names = [json.loads((folder / "entry.json").read_text())["key"]["name"] for folder in entries(features)]
    assert sorted(names) == ["a", "c", "d"]


def test_one_in_use_is_not_removed(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path), max_gb=30e-6)  # one entry of 23 KB
    (used,) = features.open([job(samples, name="a")], Pixels(), TAIL, WIDTH)
    with pytest.raises(CacheFullError, match=r"what is in use leaves"):
        features.open([job(samples, name="b")], Pixels(), TAIL, WIDTH)
    used.lock.close()
    features.open([job(samples, name="b")], Pixels(), TAIL, WIDTH)
    (folder,) = entries(features)
    assert json.loads((folder / "entry.json").read_text())["key"]["name"] == "b"


@contextmanager
def _files_up_to(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_nothing_is_left(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="The disk is full"), _files_up_to(4096):
        features.open([job(samples)], Pixels(), TAIL, WIDTH)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_augmented_views_are_those_of_the_live_loader(samples: Samples, tmp_path: Path) -> None:
    from albumentations import HorizontalFlip, RandomBrightnessContrast

    policy = Policy("test", None, {"flip": HorizontalFlip(p=0.5), "light": RandomBrightnessContrast(p=0.5)})
    augment = Augment(policy, PREPROCESSING, seed=3)
    jobs = [replace(job(samples, view=view), transform=augment, view=view) for view in range(2)]
    trunk = Pixels()

    def several(images: Tensor) -> Engine:
        return replace(trunk(images), callers=3)

    opened = Features(directory=str(tmp_path), precision="float32", views=2).open(jobs, several, TAIL, WIDTH)
    live = make_loader(samples, augment, batch_size=7, shuffle=True, seed=0, workers=0)
    cached = activation_loader([o.array for o in opened], samples, batch_size=7, shuffle=True, seed=0)
    for epoch in range(2):
        _same_epoch(live, cached, epoch)


def _same_epoch(live: Any, cached: Any, epoch: int) -> int:
    for loader in (live, cached):
        loader.sampler.set_epoch(epoch)
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
@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_are_those_of_the_live_loader(
    samples: Samples, world_size: int, shuffle: bool, drop_last: bool
) -> None:
    odd = Samples(samples.paths[:49], samples.labels[:49], None if drop_last else samples.weights, samples.sha256[:49])
    activations = pixels(odd)
    for rank in range(world_size):
        common: dict[str, Any] = {"batch_size": 8, "shuffle": shuffle, "seed": 5, "drop_last": drop_last}
        common |= {"rank": rank, "world_size": world_size}
        live = make_loader(odd, EvalTransform(PREPROCESSING), workers=0, **common)
        cached = activation_loader([activations], odd, **common)
        assert cached.batch_size == live.batch_size
        for epoch in range(2):
            _same_epoch(live, cached, epoch)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_does_not_fit_into_memory_is_read_from_disk(
    dtype: Any, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = pixels(samples).astype(dtype)
    array.tofile(tmp_path / "a")
    mapped = np.memmap(tmp_path / "a", dtype, mode="c", shape=array.shape)
    held = list(activation_loader([mapped], samples, batch_size=16, shuffle=True, seed=0))
    monkeypatch.setattr("graftline.features.loader.MEMORY_SHARE", 0.0)
    for one, other in zip(held, activation_loader([mapped], samples, batch_size=16, shuffle=True, seed=0), strict=True):
        assert other["image"].dtype == torch.float32
        assert torch.equal(one["image"], other["image"])


def test_a_directory_that_cannot_be_written_to_is_a_mistake(samples: Samples, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    features = Features(directory=str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"features\.directory=.*give another"):
        features.open([job(samples)], Pixels(), TAIL, WIDTH)


def test_exported_trunks_count_and_go_first(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, 1000)
    file = store.trunk_file({"a": 1})
    file.parent.mkdir()
    file.write_bytes(bytes(600))
    store.make_room(300)
    assert file.exists()
    store.make_room(500)
    assert not file.exists()
