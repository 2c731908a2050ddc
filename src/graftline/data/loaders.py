"""Load the images of a split as batches, decoded and transformed by worker processes.

Letters: ``N`` images, ``B`` batch, ``C`` channels, ``H``, ``W`` size of the network's input in px.
"""

import multiprocessing
import sys
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from typing import Any, TypeAlias, TypedDict, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from graftline.augment.draw import Draw, Transform
from graftline.data.decode import DecodeError, decode_rgb
from graftline.data.version import Samples
from graftline.errors import UserError
from graftline.processes import end_with_parent

__all__ = [
    "Batch",
    "Draw",
    "DrawBatches",
    "DrawSampler",
    "ImageDataset",
    "Loaders",
    "UnreadableImageError",
    "decode_sample",
    "draw_batches",
    "make_loader",
]

Position = TypeVar("Position", int, np.ndarray)  # one or many


class Batch(TypedDict):
    """Hold what a loader yields."""

    image: Tensor  # (B, C, H, W) float32
    label: Tensor  # (B,) int64
    weight: Tensor  # (B,) float32, 1 when the dataset has no weights
    index: Tensor  # (B,) int64, position of the image in its split


Loaders: TypeAlias = tuple[DataLoader[Batch], DataLoader[Batch]]
"""Those of training and validation."""


class UnreadableImageError(UserError):
    """Raised for an image that was readable at ingest and is not any more."""

    def __init__(self, message: str) -> None:
        # torch raises a worker's exception again by calling its class with the worker's whole traceback as text, which
        # ends with our sentence: keep that.
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


def decode_sample(samples: Samples, index: int) -> np.ndarray:
    """Return an image of a split, (H, W, 3) uint8.

    Raises:
        UnreadableImageError: the file cannot be read or decoded.
    """
    path = samples.paths[index]
    try:
        return decode_rgb(path, samples.decoding)
    except DecodeError as error:
        raise UnreadableImageError(
            f"{path} could be read at ingest but not now ({error}); restore the file or ingest again."
        ) from error


class ImageDataset(Dataset[Any]):
    """Decode and transform the images of a split, each when it is asked for by its draw."""

    def __init__(self, samples: Samples, transform: Transform) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples.paths)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Return one item of a ``Batch``, without the batch dimension.

        Raises:
            UnreadableImageError: the file cannot be read or decoded.
        """
        weights = self.samples.weights
        return {
            "image": self.transform(decode_sample(self.samples, draw.index), draw),
            "label": np.int64(self.samples.labels[draw.index]),
            "weight": np.float32(1 if weights is None else weights[draw.index]),
            "index": np.int64(draw.index),
        }


class DrawSampler(Sampler[Draw]):
    """Sample the draws of one epoch, for one of ``world_size`` processes that take turns through the same order.

    In order (``shuffle=False``, evaluation) every process gets the same number of draws: the first ones come again as
    padding, which ``is_padding`` tells apart. Shuffled (training) no draw comes twice, and some processes may have one
    more than others; ``DrawBatches`` makes as many steps of them. An epoch may have fewer images
    (``set_epoch_images``): then it begins in the order where the one before has ended, and the next order follows.

    Args:
        num_samples: N, images of the split.
        shuffle: whether each epoch has an order of its own, which depends on ``seed`` and the epoch only.
        seed: of the order.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        UserError: fewer images than processes in training.
    """

    def __init__(self, num_samples: int, *, shuffle: bool, seed: int, rank: int = 0, world_size: int = 1) -> None:
        assert 0 <= rank < world_size
        if shuffle and num_samples < world_size:
            raise UserError(f"{num_samples} training images cannot be shared by {world_size} processes: use fewer.")
        self.num_samples = num_samples
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.epoch_images = num_samples  # of all processes
        self._skipped = (0, 0)  # in which epoch so many images of the common order are left out

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each, anyone else must."""
        self.epoch = epoch

    def set_epoch_images(self, images: int) -> None:
        """Give each epoch so many images, of all processes together, or all if that is fewer."""
        assert self.shuffle
        assert images >= self.world_size
        self.epoch_images = min(images, self.num_samples)

    def skip(self, images: int) -> None:
        """Leave out the first images of this epoch's order, common to all processes: they are done."""
        assert self.shuffle
        self._skipped = (self.epoch, images)

    @property
    def skipped(self) -> int:
        """How many images of this epoch's order are left out."""
        return self._skipped[1] if self._skipped[0] == self.epoch else 0

    def share(self, images: int) -> int:
        """Return how many of the next images of the order are this process's."""
        return len(range(self.rank, images, self.world_size))

    def __len__(self) -> int:
        if self.shuffle:
            return self.share(self.epoch_images)
        return -(-self.num_samples // self.world_size)

    def indices(self) -> np.ndarray:
        """Return int64 (len(self),), or fewer after ``skip``: this process's images of the epoch in their order."""
        number = self.share(self.epoch_images - self.skipped) if self.shuffle else len(self)
        places: np.ndarray = self.skipped + self._place(np.arange(number))
        if self.shuffle:
            return self._shuffled(self.epoch * self.epoch_images + places)
        indices: np.ndarray = places % self.num_samples
        return indices

    def _shuffled(self, places: np.ndarray) -> np.ndarray:
        """Return the images at some places of one order after the other, each of all images."""
        indices = np.empty_like(places)
        turns = places // self.num_samples
        for turn in np.unique(turns).tolist():
            order = np.arange(self.num_samples)
            np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(turn,))).shuffle(order)
            indices[turns == turn] = order[places[turns == turn] - turn * self.num_samples]
        return indices

    def __iter__(self) -> Iterator[Draw]:
        for index in self.indices():
            yield Draw(self.epoch, int(index))

    def is_padding(self, position: int) -> bool:
        """Tell whether this process's ``position``-th draw of an epoch repeats an image that another one has too."""
        return self._place(position) >= self.num_samples

    def _place(self, position: Position) -> Position:
        """Return where this process's ``position``-th draw stands in the order common to all."""
        return position * self.world_size + self.rank


class DrawBatches(Sampler[list[Draw]]):
    """Sample the draws of one epoch in batches, as many for each process, or those with more would wait for ever.

    In training each image of the epoch is in one batch of one process, and the batches of a step differ by one image at
    most. What is left at the end of the order, where it has not two images for each process (one, if that is the size
    of a batch), is no step of its own but makes the batches of the step before larger: no batch is empty, and none a
    single image, of which BatchNorm can make no statistics. A process that is alone leaves a single image out.

    Args:
        sampler: gives the order of each epoch.
        batch_size: B, per process.
    """

    def __init__(self, sampler: DrawSampler, batch_size: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size

    @property
    def images_per_step(self) -> int:
        """Of all processes together."""
        return self.batch_size * self.sampler.world_size

    def steps(self, images: int) -> int:
        """Return how many steps so many images, at the end of an order, are enough for."""
        steps, rest = divmod(images, self.images_per_step)
        return steps + (rest >= min(2, self.batch_size) * self.sampler.world_size)

    def step_images(self, step: int) -> int:
        """Return how many images, of all processes together, a step of this epoch's ``len(self)`` has in training."""
        steps, images = self._rest()
        is_last = step == len(self) - 1
        return images - (steps - 1) * self.images_per_step if is_last else self.images_per_step

    def indices(self) -> tuple[np.ndarray, list[int]]:
        """Return this process's images of the epoch in their order, and how many of them each batch has."""
        indices = self.sampler.indices()
        if not self.sampler.shuffle:
            return indices, [min(self.batch_size, len(indices) - at) for at in range(0, len(indices), self.batch_size)]
        steps, images = self._rest()
        own, before = self.sampler.share(images), (steps - 1) * self.batch_size
        return indices[:own], [self.batch_size] * (steps - 1) + [own - before]

    def _rest(self) -> tuple[int, int]:
        """Return how many steps are left of this epoch, and how many images in them, of all processes together."""
        images = self.sampler.epoch_images - self.sampler.skipped
        steps = max(1, self.steps(images))
        return steps, min(images, steps * self.batch_size) if self.sampler.world_size == 1 else images

    def __len__(self) -> int:
        if self.sampler.shuffle:
            return max(1, self.steps(self.sampler.epoch_images))
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        indices, sizes = self.indices()
        epoch, first = self.sampler.epoch, 0
        for size in sizes:
            yield [Draw(epoch, index) for index in indices[first : first + size].tolist()]
            first += size


def draw_batches(loader: DataLoader[Batch]) -> DrawBatches:
    """Return what gives a loader its batches."""
    assert isinstance(loader.batch_sampler, DrawBatches)
    return loader.batch_sampler


def make_loader(
    samples: Samples,
    transform: Transform,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Return the loader of a split; its ``batch_sampler`` is a ``DrawBatches``.

    Args:
        samples: the split.
        transform: makes the network's input of a decoded image; pickled to the workers.
        batch_size: B, per process.
        shuffle: True for training.
        seed: of the order of the images.
        workers: worker processes; 0 decodes in this one.
        rank: number of this process under distributed training.
        world_size: number of processes under distributed training.
        pin_memory: whether batches go to a GPU, which copies them from page-locked memory without waiting.
    """
    sampler = DrawSampler(len(samples.paths), shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
    return DataLoader(
        ImageDataset(samples, transform),
        batch_sampler=DrawBatches(sampler, batch_size),
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        multiprocessing_context=_worker_context() if workers > 0 else None,
    )


def _start_worker(_: int) -> None:
    import cv2

    end_with_parent()
    cv2.setNumThreads(0)  # one thread per worker: more would only fight over the cores (torch sees to its own)


def _worker_context() -> BaseContext:
    """Return how workers are started: as forks of a server process that has imported what they need.

    By the time a worker starts, this process has threads (torch, ONNX Runtime, tracking, the progress bar), and a fork
    of it waits for ever for a lock that one of them held. In the server nothing but idle pools (OpenBLAS) runs. Until
    the first batch of a loader with 2 workers it takes 0.4 s, as ``fork`` does; ``spawn``, which imports torch in each
    worker, takes 4.8 s: where there is no fork (Windows), it must do. The server's own start, 2.5 s, goes on beside us
    while our caller builds the network.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver  # not there on Windows

    main = sys.modules["__main__"].__spec__  # None for a notebook or a script, which workers import themselves
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "albumentations", *([main.name] if main else [])])
    forkserver.ensure_running()
    return context
