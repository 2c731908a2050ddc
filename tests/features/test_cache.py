"""Activations are computed once: whatever happens in between, nothing is lost, believed wrongly or done twice."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import files_up_to
from torch import Tensor, nn

from graftline.augment.policy import Augment, EvalTransform, Policy
from graftline.augment.preprocess import Preprocessing
from graftline.console import console
from graftline.data.decode import Decoding, decode_rgb
from graftline.data.loaders import draw_batches, make_loader
from graftline.data.version import Samples
from graftline.errors import UserError
from graftline.features import segment
from graftline.features.activation_table import GatheredRows
from graftline.features.cache import ActivationRequest, CacheFullError, Features
from graftline.features.engine import Engine
from graftline.features.frozen_pass import content_draw
from graftline.features.loader import activation_loader
from graftline.files import sha256_file

PREPROCESSING = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)
WIDTH = 3 * 8 * 8
TAIL = nn.Linear(WIDTH, 3)
IMAGES = 60


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "MAX_SHARD_IMAGES", 16)  # 60 images: 16, 16, 16, 12


@pytest.fixture
def samples(color_folder: Path) -> Samples:
    paths = sorted(str(path) for path in color_folder.rglob("*.png"))
    assert len(paths) == IMAGES
    sha256 = [sha256_file(Path(path)) for path in paths]
    return Samples(paths, np.arange(IMAGES) % 3, np.linspace(0, 1, IMAGES, dtype=np.float32), sha256)


def choose(samples: Samples, rows: Any) -> Samples:
    """Return some of the images, in the order of ``rows``, which may repeat."""
    rows = np.arange(len(samples.paths))[rows]
    assert samples.weights is not None
    paths, sha256 = ([column[row] for row in rows] for column in (samples.paths, samples.sha256))
    return Samples(paths, samples.labels[rows], samples.weights[rows], sha256)


class Pixels:
    """A trunk that hands the pixels on, counts the images, and may fail."""

    def __init__(self, stop_after: int = 10**9, factor: float = 1.0) -> None:
        self.images = 0
        self.built = 0
        self.ended = 0
        self._stop_after = stop_after
        self._factor = factor

    def __call__(self, images: Tensor) -> Engine:
        assert images.shape[1:] == (3, 8, 8)
        self.built += 1
        return Engine(self._run, "pixels", callers=1, batch_size=4, end=self._end)

    def _end(self) -> None:
        self.ended += 1

    def _run(self, images: Tensor) -> np.ndarray:
        if self.images >= self._stop_after:
            raise KeyboardInterrupt
        self.images += len(images)
        result: np.ndarray = (images.flatten(1) * self._factor).numpy()
        return result


def job(samples: Samples, **key: Any) -> ActivationRequest:
    return ActivationRequest(samples, EvalTransform(PREPROCESSING), 0, {"network": "pixels", **key})


def pixels(samples: Samples) -> np.ndarray:
    """Return what the cache should give, from the loader of images."""
    transform, size = EvalTransform(PREPROCESSING), len(samples.paths)
    loader = make_loader(samples, transform, batch_size=size, shuffle=False, seed=0, workers=0)
    result: np.ndarray = next(iter(loader))["image"].flatten(1).numpy()
    return result


def segments(features: Features) -> list[Path]:
    return sorted(path.parent for path in Path(features.directory).glob("*/*/segment.json"))


def key_of(folder: Path) -> dict[str, Any]:
    key: dict[str, Any] = json.loads((folder / "segment.json").read_text())["key"]
    return key


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


@pytest.mark.parametrize("stop_after", [10**9, 20])
def test_an_engine_is_ended_when_it_has_run(samples: Samples, tmp_path: Path, stop_after: int) -> None:
    trunk = Pixels(stop_after)
    with suppress(KeyboardInterrupt):
        Features(directory=str(tmp_path)).open([job(samples), job(samples, view=1)], trunk, TAIL, WIDTH)
    assert (trunk.built, trunk.ended) == (1, 1)


def test_what_a_segment_says_of_itself(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path))
    text = said(lambda: features.open([job(samples)], Pixels(), TAIL, WIDTH))
    assert f"Caching the activations of 60 images in {tmp_path}: 23.0 KB as float16, or 46.1 KB as float32 (" in text
    (folder,) = segments(features)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.iterdir()} == {"lock", folder.parent.name}
    assert [path.name for path in folder.parent.iterdir()] == ["00000"]
    files = {"segment.json", "digests.npy", "order.npy", "activations.bin", "shards.bin", "used"}
    assert {path.name for path in folder.iterdir()} == files, "no claim is left"
    header = json.loads((folder / "segment.json").read_text())
    assert header["key"] == {"network": "pixels", "precision": "auto"}
    assert [header[name] for name in ("images", "width", "dtype")] == [IMAGES, WIDTH, "float16"]
    os.utime(folder / "used", (0, 0))
    features.open([job(samples)], Pixels(), TAIL, WIDTH)
    assert (folder / "used").stat().st_mtime > time.time() - 60


def test_new_images_alone_are_computed(samples: Samples, tmp_path: Path) -> None:
    features, trunk = Features(directory=str(tmp_path), precision="float32"), Pixels()
    odd = choose(samples, slice(1, None, 2))
    features.open([job(odd)], trunk, TAIL, WIDTH)
    assert features.missing([job(samples)]) == 30
    (all_of_them,) = features.open([job(samples)], trunk, TAIL, WIDTH)
    assert trunk.images == IMAGES
    assert isinstance(all_of_them.array, GatheredRows)
    np.testing.assert_array_equal(all_of_them.array, pixels(samples))
    again = choose(samples, slice(None, None, -1))
    (turned,) = features.open([job(again)], trunk, TAIL, WIDTH)
    assert trunk.images == IMAGES
    np.testing.assert_array_equal(turned.array, pixels(again))
    assert features.missing([job(samples)]) == 0


def test_other_splits_and_data_sets_share_what_there_is(samples: Samples, tmp_path: Path) -> None:
    features, trunk = Features(directory=str(tmp_path), precision="float32"), Pixels()
    train, validation = choose(samples, slice(0, 40)), choose(samples, slice(40, None))
    opened = features.open([job(validation), job(train)], trunk, TAIL, WIDTH)
    for activations, split in zip(opened, (validation, train), strict=True):
        assert isinstance(activations.array, np.memmap), "what was written together is read as it lies"
        np.testing.assert_array_equal(activations.array, pixels(split))
    other = choose(samples, [50, 3, 41, 20])
    (moved,) = features.open([job(other)], trunk, TAIL, WIDTH)
    assert trunk.images == IMAGES
    np.testing.assert_array_equal(moved.array, pixels(other))


def test_the_same_content_is_computed_once(samples: Samples, tmp_path: Path) -> None:
    features, trunk = Features(directory=str(tmp_path), precision="float32"), Pixels()
    twice = choose(samples, [*range(20), *range(10, 30), 0])
    assert features.missing([job(twice), job(twice)]) == 30
    first, second = features.open([job(twice), job(choose(samples, slice(25, 35)))], trunk, TAIL, WIDTH)
    assert trunk.images == 35
    np.testing.assert_array_equal(first.array, pixels(twice))
    np.testing.assert_array_equal(second.array, pixels(choose(samples, slice(25, 35))))


def test_half_of_a_shard_that_was_not_written_is_not_lost(samples: Samples, tmp_path: Path) -> None:
    """One who has not all images of a shard that a killed pass has left computes his own elsewhere."""
    features = Features(directory=str(tmp_path), precision="float32")
    with pytest.raises(KeyboardInterrupt):
        features.open([job(samples)], Pixels(stop_after=40), TAIL, WIDTH)
    trunk, some = Pixels(), choose(samples, slice(0, 52))  # of the last shard, 48 to 59, not all
    (activations,) = features.open([job(some)], trunk, TAIL, WIDTH)
    assert trunk.images == 52 - 32
    np.testing.assert_array_equal(activations.array, pixels(some))


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
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_flipped_byte_costs_one_shard(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path), precision="float32")
    features.open([job(samples)], Pixels(), TAIL, WIDTH)
    (folder,) = segments(features)
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
    (folder,) = segments(features)
    with (folder / "activations.bin").open("r+b") as file:
        file.truncate(1000)
    (activations,) = features.open([job(samples)], Pixels(), TAIL, WIDTH)
    np.testing.assert_array_equal(activations.array, pixels(samples))


def test_checksums_are_verified_once(samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features(directory=str(tmp_path), precision="float32")
    features.open([job(samples)], Pixels(), TAIL, WIDTH)
    verified: list[int] = []
    checksum = segment._checksum

    def count(rows: np.ndarray) -> int:
        verified.append(len(rows))
        return checksum(rows)

    monkeypatch.setattr(segment, "_checksum", count)
    features.missing([job(samples)])
    assert IMAGES not in verified
    assert 16 not in verified, "to count does not need it"
    for _ in range(2):
        features.open([job(samples)], Pixels(), TAIL, WIDTH)
    assert sorted(rows for rows in verified if rows > 2) == [12, 16, 16, 16], "beside those of the digests"


def test_a_damaged_index_is_not_believed(samples: Samples, tmp_path: Path) -> None:
    features, trunk = Features(directory=str(tmp_path), precision="float32"), Pixels()
    features.open([job(samples)], trunk, TAIL, WIDTH)
    (folder,) = segments(features)
    content = bytearray((folder / "digests.npy").read_bytes())
    content[-1] ^= 1
    (folder / "digests.npy").write_bytes(content)
    (activations,) = features.open([job(samples)], trunk, TAIL, WIDTH)
    assert trunk.images == 2 * IMAGES
    np.testing.assert_array_equal(activations.array, pixels(samples))


def test_half_precision_where_no_prediction_changes(samples: Samples, tmp_path: Path) -> None:
    (activations,) = Features(directory=str(tmp_path)).open([job(samples)], Pixels(), TAIL, WIDTH)
    assert activations.array.dtype == np.float16
    with torch.inference_mode():
        kept, exact = (
            TAIL(torch.from_numpy(np.array(array, np.float32))).softmax(1)
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
    assert np.isfinite(np.asarray(activations.array)).all()
    np.testing.assert_array_equal(np.asarray(activations.array)[:32], pixels(samples)[:32].astype(np.float16))


def test_one_larger_than_the_limit_is_refused_before_anything_runs(samples: Samples, tmp_path: Path) -> None:
    trunk = Pixels()
    with pytest.raises(CacheFullError, match=r"23.0 KB, more than the 20.0 KB of Features.max_gb"):
        Features(directory=str(tmp_path), max_gb=20e-6).open([job(samples)], trunk, TAIL, WIDTH)
    assert trunk.built == 0
    assert not list(tmp_path.iterdir())


def test_a_limit_that_is_none_is_a_mistake() -> None:
    for limit in (-1.0, float("nan")):
        with pytest.raises(UserError, match=r"Features\.max_gb"):
            Features(max_gb=limit)


def test_a_full_disk_is_said_and_nothing_is_left(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path / "cache"))
    with (
        pytest.raises(
            UserError, match=r"activations.bin cannot be written .File too large.*Or choose another Features.directory"
        ),
        files_up_to(4096),
    ):
        features.open([job(samples)], Pixels(), TAIL, WIDTH)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def views_of(samples: Samples) -> list[ActivationRequest]:
    from albumentations import HorizontalFlip, RandomBrightnessContrast

    policy = Policy("test", None, {"flip": HorizontalFlip(p=0.5), "light": RandomBrightnessContrast(p=0.5)})
    augment = Augment(policy, PREPROCESSING, seed=3)
    return [replace(job(samples, view=view), transform=augment, view=view) for view in range(2)]


def test_an_augmented_view_depends_on_the_image_and_not_on_its_place(samples: Samples, tmp_path: Path) -> None:
    trunk = Pixels()

    def several(images: Tensor) -> Engine:
        return replace(trunk(images), callers=3)

    features = Features(directory=str(tmp_path), precision="float32", views=2)
    few = choose(samples, slice(30, None))
    features.open(views_of(few), several, TAIL, WIDTH)
    opened = features.open(views_of(samples), several, TAIL, WIDTH)
    assert trunk.images == 2 * IMAGES
    augment = views_of(samples)[0].transform
    for view, activations in enumerate(opened):
        for row, found in enumerate(np.asarray(activations.array)):
            image = decode_rgb(samples.paths[row], Decoding(max_pixels=10**6))
            expected = augment(image, content_draw(samples.sha256[row], view))
            np.testing.assert_array_equal(found, expected.reshape(-1))
    assert not np.array_equal(opened[0].array, opened[1].array)


def test_epochs_take_turns_through_the_views(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path), precision="float32", views=2)
    opened = features.open(views_of(samples), Pixels(), TAIL, WIDTH)
    loader = activation_loader([o.array for o in opened], samples, batch_size=IMAGES, shuffle=False, seed=0)
    for epoch in range(3):
        draw_batches(loader).sampler.set_epoch(epoch)
        (batch,) = loader
        np.testing.assert_array_equal(batch["image"], opened[epoch % 2].array)


def test_a_directory_that_cannot_be_written_to_is_a_mistake(samples: Samples, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    features = Features(directory=str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"Features\.directory is .* is no folder: move it away"):
        features.open([job(samples)], Pixels(), TAIL, WIDTH)
