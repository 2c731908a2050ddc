"""The loaders, with real worker processes: which image when, and which draw of it."""

import importlib
import itertools
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import albumentations
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader

from graftline.augment.policy import Augment, EvalTransform, Policy, RandomCrop, Transform
from graftline.augment.preprocess import Preprocessing
from graftline.data.decoding import Decoding
from graftline.data.loaders import (
    Batch,
    Draw,
    DrawBatches,
    DrawSampler,
    UnreadableImageError,
    draw_batches,
    make_loader,
)
from graftline.data.version import Samples
from graftline.errors import UserError

PREPROCESSING = Preprocessing((24, 24), (0.5,) * 3, (0.5,) * 3)
NUM_IMAGES = 10


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Return ten copies of one image: two of them only look different if their draws are."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    paths = [folder / f"{index}.png" for index in range(NUM_IMAGES)]
    for path in paths:
        Image.fromarray(pixels).save(path)
    return Samples([str(path) for path in paths], np.arange(NUM_IMAGES) % 3, None, [path.stem for path in paths])


@pytest.fixture(scope="module")
def policy() -> Policy:
    transforms = {
        "mirror": albumentations.HorizontalFlip(p=0.5),
        "warp": albumentations.ElasticTransform(alpha=20, sigma=4, p=0.5),  # draws from numpy, the others from Python
    }
    return Policy("test", RandomCrop((0.5, 1.0), (0.8, 1.25)), transforms)


def looks(loader: DataLoader[Batch], epochs: int) -> dict[Draw, bytes]:
    """Return what the network sees for each draw of some epochs."""
    seen: dict[Draw, bytes] = {}
    for epoch in range(epochs):
        draw_batches(loader).sampler.set_epoch(epoch)
        for batch in loader:
            for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
                draw = Draw(epoch, index)
                assert draw not in seen
                seen[draw] = image.numpy().tobytes()
    return seen


def train_loader(
    samples: Samples, policy: Policy, *, seed: int = 0, workers: int = 0, rank: int = 0, world_size: int = 1
) -> DataLoader[Batch]:
    augment = Augment(policy, PREPROCESSING, seed)
    return make_loader(
        samples,
        augment,
        batch_size=4,
        shuffle=True,
        seed=seed,
        workers=workers,
        rank=rank,
        world_size=world_size,
    )


@pytest.fixture(scope="module")
def alone(samples: Samples, policy: Policy) -> dict[Draw, bytes]:
    """Return what a single process without workers sees in three epochs."""
    return looks(train_loader(samples, policy), epochs=3)


def test_no_image_gets_the_same_draw_in_two_epochs_or_positions(alone: dict[Draw, bytes]) -> None:
    assert len(alone) == 3 * NUM_IMAGES
    assert len(set(alone.values())) == 3 * NUM_IMAGES


@pytest.mark.parametrize("workers", [1, 2])
def test_draws_do_not_depend_on_the_number_of_workers(
    samples: Samples, policy: Policy, alone: dict[Draw, bytes], workers: int
) -> None:
    assert looks(train_loader(samples, policy, workers=workers), epochs=3) == alone


def test_draws_do_not_depend_on_the_number_of_processes(
    samples: Samples, policy: Policy, alone: dict[Draw, bytes]
) -> None:
    together: dict[Draw, bytes] = {}
    for rank in (0, 1):
        mine = looks(train_loader(samples, policy, rank=rank, world_size=2), epochs=3)
        assert not mine.keys() & together.keys()
        together |= mine
    assert together == alone


def test_another_seed_gives_other_draws(samples: Samples, policy: Policy, alone: dict[Draw, bytes]) -> None:
    others = looks(train_loader(samples, policy, seed=1), epochs=3)
    assert not set(others.values()) & set(alone.values())


def test_lightning_moves_the_epochs_on(samples: Samples, policy: Policy, alone: dict[Draw, bytes]) -> None:
    import pytorch_lightning as pl

    class Watcher(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[bytes] = []

        def training_step(self, batch: Batch) -> None:
            self.seen += [image.numpy().tobytes() for image in batch["image"]]

        def configure_optimizers(self) -> None:
            return None

    watcher = Watcher()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(watcher, train_loader(samples, policy, workers=1))
    assert sorted(watcher.seen) == sorted(alone.values())


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 16])
def test_evaluation_sees_each_image_once_and_marks_the_padding(world_size: int) -> None:
    samplers = [DrawSampler(10, shuffle=False, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(list(sampler)) for sampler in samplers}) == 1
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]
    counted = [
        draw.index for sampler in samplers for position, draw in enumerate(sampler) if not sampler.is_padding(position)
    ]
    assert sorted(counted) == list(range(10))


def test_evaluation_keeps_the_order() -> None:
    assert [draw.index for draw in DrawSampler(5, shuffle=False, seed=3)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_training_sees_each_image_once(world_size: int) -> None:
    samplers = [DrawSampler(10, shuffle=True, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)]
    for epoch in range(3):
        indices: list[int] = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            draws = list(sampler)
            assert len(draws) == len(sampler) in (10 // world_size, 10 // world_size + 1)
            assert {draw.epoch for draw in draws} == {epoch}
            assert not any(sampler.is_padding(position) for position in range(len(draws)))
            indices += [draw.index for draw in draws]
        assert sorted(indices) == list(range(10))


def _steps_of(images: int, batch_size: int, world_size: int) -> list[list[list[int]]]:
    """Return the images of an epoch by step and process."""
    found = []
    for rank in range(world_size):
        sampler = DrawSampler(images, shuffle=True, seed=0, rank=rank, world_size=world_size)
        sampler.set_epoch(2)
        batches = DrawBatches(sampler, batch_size)
        found.append([[draw.index for draw in batch] for batch in batches])
        assert len(found[-1]) == len(batches)
    together = list(zip(*found, strict=True))  # or those with more would wait for ever
    for step, parts in enumerate(together):
        assert batches.step_images(step) == sum(len(part) for part in parts)
    return [list(parts) for parts in together]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_of_all_processes_are_even_and_miss_no_image(batch_size: int, world_size: int) -> None:
    for images in range(world_size, 6 * batch_size * world_size):
        steps = _steps_of(images, batch_size, world_size)
        sizes = np.array([[len(part) for part in parts] for parts in steps])
        assert (sizes.max(axis=1) - sizes.min(axis=1)).max() <= 1
        assert sizes.min() >= (min(2, batch_size) if images >= 2 * world_size else 1)
        assert (sizes[:-1] == batch_size).all()
        assert sizes.max() <= batch_size + 2
        seen = [image for parts in steps for part in parts for image in part]
        is_left_out = world_size == 1 and len(steps) * batch_size + 1 == images
        assert len(set(seen)) == len(seen) == images - is_left_out


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batches_of_equal_shares_are_those_of_torch(batch_size: int, world_size: int) -> None:
    """One process leaves out a last batch of one image; several have none."""
    for share in range(1, 30):
        sampler = DrawSampler(share * world_size, shuffle=True, seed=0)
        sampler.set_epoch(2)
        leaves_one = share > 1 and share % batch_size == 1
        if leaves_one and world_size > 1:
            continue
        parts = [sampler.indices()[rank::world_size].tolist() for rank in range(world_size)]
        of_torch = [list(BatchSampler(part, batch_size, leaves_one)) for part in parts]
        assert _steps_of(share * world_size, batch_size, world_size) == [
            list(step) for step in zip(*of_torch, strict=True)
        ]


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_step_of_several_processes_is_that_of_one(world_size: int) -> None:
    """The same images are together, whatever number of processes shares them."""
    several, one = _steps_of(47, 4, world_size), _steps_of(47, 4 * world_size, 1)
    assert [sorted(itertools.chain(*parts)) for parts in several] == [sorted(part) for (part,) in one]


@pytest.mark.parametrize("world_size", [1, 3])
def test_epochs_of_a_part_of_the_images_walk_through_one_order_after_the_other(world_size: int) -> None:
    samplers = [DrawSampler(10, shuffle=True, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)]
    whole = DrawSampler(10, shuffle=True, seed=0)
    orders = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        orders += whole.indices().tolist()
    walked: list[int] = []
    for epoch in range(5):
        for sampler in samplers:
            sampler.set_epoch_images(6)
            sampler.set_epoch(epoch)
            assert len(sampler.indices()) == len(sampler) == 6 // world_size
        walked += np.stack([sampler.indices() for sampler in samplers], axis=1).ravel().tolist()
    assert walked == orders
    rest = DrawSampler(10, shuffle=True, seed=0)
    rest.set_epoch_images(6)
    rest.set_epoch(1)
    rest.skip(2)
    assert rest.indices().tolist() == orders[8:12]
    rest.set_epoch_images(99)
    rest.set_epoch(2)
    assert rest.indices().tolist() == orders[20:]


def test_order_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = DrawSampler(50, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return [draw.index for draw in sampler]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_more_processes_than_training_images_are_refused() -> None:
    with pytest.raises(UserError, match="3 training images cannot be shared by 4 processes"):
        DrawSampler(3, shuffle=True, seed=0, world_size=4)


def test_batches_are_what_they_say(samples: Samples) -> None:
    weighted = Samples(samples.paths, samples.labels, np.linspace(0.1, 1, NUM_IMAGES, dtype=np.float32), samples.sha256)
    for given, weights in ((samples, torch.ones(NUM_IMAGES)), (weighted, torch.linspace(0.1, 1, NUM_IMAGES))):
        loader = make_loader(given, EvalTransform(PREPROCESSING), batch_size=4, shuffle=False, seed=0, workers=0)
        batches = list(loader)
        assert [len(batch["label"]) for batch in batches] == [4, 4, 2]
        assert batches[0]["image"].shape == (4, 3, 24, 24)
        assert [batches[0][key].dtype for key in ("image", "label", "weight", "index")] == [
            torch.float32,
            torch.int64,
            torch.float32,
            torch.int64,
        ]
        assert torch.cat([batch["label"] for batch in batches]).tolist() == given.labels.tolist()
        torch.testing.assert_close(torch.cat([batch["weight"] for batch in batches]), weights)
        with Image.open(given.paths[0]) as image:
            expected = PREPROCESSING(np.asarray(image))
        np.testing.assert_array_equal(batches[0]["image"][0].numpy(), expected)


@pytest.mark.parametrize(("shuffle", "sizes"), [(True, [3, 3, 3]), (False, [3, 3, 3, 1])])
def test_a_last_batch_of_one_image_is_not_trained_on(samples: Samples, shuffle: bool, sizes: list[int]) -> None:
    loader = make_loader(samples, EvalTransform(PREPROCESSING), batch_size=3, shuffle=shuffle, seed=0, workers=0)
    assert [len(batch["label"]) for batch in loader] == sizes
    assert len(loader) == len(sizes)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("broken", ["truncated", "gone"])
def test_an_unreadable_image_is_named_in_one_sentence(
    samples: Samples, tmp_path: Path, workers: int, broken: str
) -> None:
    path = tmp_path / "broken.png"
    if broken == "truncated":
        path.write_bytes(Path(samples.paths[0]).read_bytes()[:400])
    spoilt = Samples([*samples.paths[:3], str(path)], samples.labels[:4], None, samples.sha256[:4])
    loader = make_loader(spoilt, EvalTransform(PREPROCESSING), batch_size=2, shuffle=False, seed=0, workers=workers)
    sentence = ""
    try:
        list(loader)
    except UnreadableImageError as error:
        # the traceback goes round in a circle with the loader in it, whose workers would last until it is collected
        sentence = str(error.with_traceback(None))
    assert sentence.startswith(f"{path} could be read at ingest but not now (")
    assert sentence.endswith("; restore the file or ingest again.")
    assert "\n" not in sentence


def test_a_loader_keeps_to_the_limit_of_the_version(samples: Samples) -> None:
    limited = Samples(samples.paths, samples.labels, None, samples.sha256, Decoding(max_pixels=1))
    loader = make_loader(limited, EvalTransform(PREPROCESSING), batch_size=2, shuffle=False, seed=0, workers=0)
    with pytest.raises(UnreadableImageError, match="are more than 1 pixels"):
        list(loader)


WORKER_MODULE = """
import threading

import cv2
import numpy as np
import torch

lock = threading.Lock()


def report(image, draw):
    with lock:  # a fork of a process that holds it would wait for ever
        return np.full((1, 1, 2), (cv2.getNumThreads(), torch.get_num_threads()), dtype=np.float32)
"""


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Transform]:
    """Return a transform that tells a worker's numbers of threads; its lock is held in this process."""
    (tmp_path / "graftline_test_worker.py").write_text(WORKER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("graftline_test_worker")
    with module.lock:
        yield module.report


def test_workers_inherit_no_locks_and_have_one_thread(samples: Samples, report: Transform) -> None:
    loader = make_loader(samples, report, batch_size=5, shuffle=False, seed=0, workers=2)
    loader.timeout = 60
    batches = list(loader)
    assert len(batches) == 2
    for batch in batches:
        assert (batch["image"] == 1).all()


def test_workers_may_be_spawned(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, which has nothing else."""
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    batches = [
        list(make_loader(samples, EvalTransform(PREPROCESSING), batch_size=5, shuffle=True, seed=0, workers=workers))
        for workers in (0, 1)
    ]
    for here, spawned in zip(*batches, strict=True):
        assert {name: tensor.tolist() for name, tensor in here.items()} == {
            name: tensor.tolist() for name, tensor in spawned.items()
        }


def test_workers_stay_from_one_epoch_to_the_next(samples: Samples) -> None:
    loader = make_loader(samples, EvalTransform(PREPROCESSING), batch_size=5, shuffle=False, seed=0, workers=2)

    def processes() -> set[int]:
        iterator = iter(loader)
        for _ in iterator:
            pass
        return {worker.pid for worker in iterator._workers}  # type: ignore[attr-defined]

    assert processes() == processes()
