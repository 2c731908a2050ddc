"""Load the images of a split as batches in this process, each file decoded once.

Letters: ``B`` batch, ``C`` channels, ``h``, ``w`` size of the network's input in px.
"""

import copy
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.data import DataLoader

from graftline.augment.draw import Draw, InTwoSteps, PreparedTransform
from graftline.data.image_memory import Pictures
from graftline.data.loaders import Batch, DrawBatches, DrawSampler, ImageDataset, decode_sample
from graftline.data.version import Samples


class PictureLoader(DataLoader[Batch]):
    """Gives the batches of ``make_loader``, each made by threads of this process when it is asked for.

    A ``DataLoader`` by its surface only. Decoding, resizing and augmenting let other threads run meanwhile.

    Args:
        samples: the split.
        transform: makes the network's input of a decoded image; each thread has a copy of it.
        pictures: those of the split, which are put in as they are decoded.
        batches: which images, and in which order.
        threads: that work on a batch.
    """

    def __init__(
        self,
        samples: Samples,
        transform: PreparedTransform,
        pictures: Pictures,
        batches: DrawBatches,
        *,
        threads: int,
    ) -> None:
        self._samples = samples
        self._pictures = pictures
        self._batches = batches
        self._threads = threads
        self._local = _OfThread(transform)
        weights = np.ones(len(samples.labels), np.float32) if samples.weights is None else samples.weights
        self._weights = torch.tensor(weights)
        self._labels = torch.tensor(samples.labels)
        dataset = ImageDataset(samples, InTwoSteps(transform))
        super().__init__(dataset, batch_sampler=batches)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch promises an iterator of its own class
        """Return the batches of one epoch."""
        if (cv2 := sys.modules.get("cv2")) is not None:
            cv2.setNumThreads(0)  # our threads take all cores already
        order, sizes = self._batches.indices()
        epoch = self._batches.sampler.epoch
        with ThreadPoolExecutor(self._threads) as pool:
            for index in torch.split(torch.from_numpy(order), sizes):
                images = list(pool.map(self._image, (Draw(epoch, row) for row in index.tolist())))
                yield {
                    "image": torch.from_numpy(np.stack(images)),
                    "label": self._labels[index],
                    "weight": self._weights[index],
                    "index": index,
                }

    def _image(self, draw: Draw) -> np.ndarray:
        """Return the network's input (C, h, w) of a draw."""
        transform = self._local.transform
        picture = self._pictures.get(draw.index)
        if picture is None:
            picture = transform.prepare(decode_sample(self._samples, draw.index))
            self._pictures.put(draw.index, picture)
        return transform.finish(picture, draw)


class _OfThread(threading.local):
    """A transform for each thread, as it may draw lots."""

    def __init__(self, transform: PreparedTransform) -> None:
        self.transform = copy.deepcopy(transform)


def picture_loader(
    samples: Samples,
    transform: PreparedTransform,
    pictures: Pictures,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    threads: int,
    rank: int = 0,
    world_size: int = 1,
) -> PictureLoader:
    """Return the loader of a split that keeps its images.

    Args:
        samples: the split.
        transform: makes the network's input of a decoded image, in two steps.
        pictures: those of the split, by ``ImageMemory.open`` for the same transform.
        batch_size: as in ``make_loader``, like the rest.
        shuffle: True for training.
        seed: of the order of the images.
        threads: that work on a batch.
        rank: number of this process.
        world_size: number of processes.
    """
    sampler = DrawSampler(len(samples.paths), shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
    return PictureLoader(samples, transform, pictures, DrawBatches(sampler, batch_size), threads=threads)
