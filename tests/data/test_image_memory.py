"""Images that are decoded once give the numbers of those that are decoded each time."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from graftline.augment.draw import InTwoSteps, PreparedTransform
from graftline.augment.policy import SPARE, Augment, EvalTransform, Policy, RandomCrop
from graftline.augment.preprocess import Preprocessing
from graftline.data.decoding import Decoding
from graftline.data.image_memory import ImageMemory, Pictures, free_memory
from graftline.data.loaders import Batch, UnreadableImageError, draw_batches, make_loader
from graftline.data.picture_loader import PictureLoader, picture_loader
from graftline.data.version import Samples

PREPROCESSING = Preprocessing((24, 24), (0.5,) * 3, (0.4, 0.5, 0.6))
TRANSFORMS = {"mirror": albumentations.HorizontalFlip(p=0.5), "jitter": albumentations.ColorJitter(p=0.5)}
CROP = RandomCrop((0.8, 1.0), (0.9, 1.11))
STEPS: dict[str, PreparedTransform] = {
    "plain": EvalTransform(PREPROCESSING),
    "gray": Augment(Policy("", None, TRANSFORMS), Preprocessing((24, 24), (0.5,), (0.5,), channels=1), 0),
    "transforms": Augment(Policy("", None, TRANSFORMS), PREPROCESSING, 0),
    "crop": Augment(Policy("", CROP, TRANSFORMS), PREPROCESSING, 0),
}
SIZES = [(30, 40), (24, 24), (300, 200), (7, 90), (500, 500), (29, 41), (64, 64)]


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    """Return images of all sizes, some much larger than the network's input."""
    chance, paths = np.random.default_rng(0), []
    for number, size in enumerate(SIZES):
        paths.append(str(tmp_path / f"{number}.png"))
        coarse = Image.fromarray(chance.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(paths[-1])
    weights = np.linspace(0.1, 1, len(SIZES), dtype=np.float32)
    return Samples(paths, np.arange(len(SIZES)) % 3, weights, paths, sizes=np.array(SIZES))


def open_loader(
    samples: Samples, name: str, memory: ImageMemory, *, threads: int = 2, batch_size: int = 4
) -> PictureLoader:
    pictures = memory.open(samples, STEPS[name])
    assert pictures is not None
    return picture_loader(samples, STEPS[name], pictures, threads=threads, batch_size=batch_size, shuffle=True, seed=0)


def epoch_of(loader: DataLoader[Batch], epoch: int) -> list[Batch]:
    draw_batches(loader).sampler.set_epoch(epoch)
    return list(loader)


def assert_equal(some: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert isinstance(tensor, torch.Tensor)
            assert tensor.dtype == other[name].dtype  # type: ignore[literal-required]
            assert tensor.equal(other[name]), name  # type: ignore[literal-required]


@pytest.mark.parametrize("batch_size", [3, 4])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", STEPS)
def test_kept_images_give_the_numbers_of_decoded_ones(
    name: str, threads: int, batch_size: int, samples: Samples
) -> None:
    loader = open_loader(samples, name, ImageMemory(), threads=threads, batch_size=batch_size)
    usual = make_loader(samples, InTwoSteps(STEPS[name]), batch_size=batch_size, shuffle=True, seed=0, workers=0)
    assert len(loader) == len(usual)
    for epoch in range(3):
        assert_equal(epoch_of(loader, epoch), epoch_of(usual, epoch))


@pytest.mark.parametrize("name", ["plain", "gray", "transforms"])
def test_two_steps_are_one_where_there_is_no_random_crop(name: str, samples: Samples) -> None:
    common = {"batch_size": 3, "shuffle": True, "seed": 0, "workers": 0}
    once, twice = (make_loader(samples, one, **common) for one in (STEPS[name], InTwoSteps(STEPS[name])))  # type: ignore[arg-type]
    assert_equal(list(once), list(twice))


def test_later_epochs_and_fits_read_no_file_and_differ(samples: Samples) -> None:
    memory = ImageMemory()
    loader = open_loader(samples, "crop", memory)
    expected = [epoch_of(loader, epoch) for epoch in range(3)]
    for path in samples.paths:
        Path(path).unlink()
    again = open_loader(samples, "crop", memory)
    for epoch in (2, 1):
        assert_equal(epoch_of(again, epoch), expected[epoch])
    looks = [image.numpy().tobytes() for batches in expected for batch in batches for image in batch["image"]]
    assert len(set(looks)) == 3 * len(SIZES)


def test_of_a_large_image_its_crop_keeps_more_pixels_than_the_network_takes() -> None:
    augment = STEPS["crop"]
    assert augment.prepared_size((30, 40)) == (30, 40, 3)
    for size in ((500, 500), (300, 200), (200, 2000)):
        height, width, _ = augment.prepared_size(size)
        assert height < size[0]
        assert height / width == pytest.approx(size[0] / size[1], rel=0.03)
        assert min(CROP.least((height, width), 1.0)) >= SPARE * 24
        assert augment.prepare(np.zeros((*size, 3), np.uint8)).shape == (height, width, 3)


def test_a_smaller_picture_is_cropped_alike(samples: Samples) -> None:
    common = {"batch_size": len(SIZES), "shuffle": False, "seed": 0, "workers": 0}
    (once,), (twice,) = (make_loader(samples, one, **common) for one in (STEPS["crop"], InTwoSteps(STEPS["crop"])))  # type: ignore[arg-type]
    assert not once["image"].equal(twice["image"])
    assert (once["image"] - twice["image"]).abs().mean() < 0.01  # of about 4 from black to white


@pytest.mark.parametrize(
    "change", [{"sha256": ["other"] * len(SIZES)}, {"decoding": Decoding(max_pixels=10**6)}, {"name": "transforms"}]
)
def test_other_files_or_another_preparation_have_pictures_of_their_own(
    change: dict[str, Any], samples: Samples
) -> None:
    memory = ImageMemory()
    first = memory.open(samples, STEPS["crop"])
    transform = STEPS[str(change.pop("name", "crop"))]
    assert memory.open(samples, STEPS["crop"]) is first
    assert memory.open(replace(samples, **change), transform) is not first


def test_what_does_not_fit_is_not_kept(samples: Samples) -> None:
    needed = 24 * 24 * 3 * len(SIZES)
    scarce = ImageMemory(share=1.5 * needed / free_memory())
    first = scarce.open(samples, STEPS["plain"])
    assert first is not None
    assert scarce.open(samples, STEPS["crop"]) is None, "larger"
    smaller = EvalTransform(replace(PREPROCESSING, crop_pct=0.5))
    assert scarce.open(samples, smaller) is not None, "what was kept made room"
    assert scarce.open(samples, smaller, processes=2) is not None, "it is there already"
    assert ImageMemory(share=1.5 * needed / free_memory()).open(samples, smaller, processes=2) is None
    assert ImageMemory(share=0).open(samples, STEPS["plain"]) is None
    assert ImageMemory().open(replace(samples, sizes=None), STEPS["plain"]) is None


def test_a_picture_that_is_larger_than_was_said_is_left_out() -> None:
    pictures = Pictures([6, 6])
    pictures.put(0, np.ones((2, 2, 3), np.uint8))
    pictures.put(1, np.full((1, 1, 3), 7, np.uint8))
    assert pictures.get(0) is None
    np.testing.assert_array_equal(pictures.get(1), [[[7, 7, 7]]])
    assert pictures.missing_bytes == 6


def test_an_unreadable_image_is_named(samples: Samples, tmp_path: Path) -> None:
    loader = open_loader(samples, "plain", ImageMemory())
    shutil.move(samples.paths[2], tmp_path / "elsewhere")
    with pytest.raises(UnreadableImageError, match="could be read at ingest but not now"):
        list(loader)
