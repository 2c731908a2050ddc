"""Cached activations in batches, at the speed of memory.

Letters: B batch, N images, F numbers per image.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from graftline.data.loaders import Batch, DrawBatches, DrawSampler
from graftline.data.version import Samples
from graftline.features.activation_table import GatheredRows, Matrix

MEMORY_SHARE = 0.25  # of the memory that is free: what fits into it is read once and held


class ActivationLoader(DataLoader[Batch]):
    """Slices batches of activations out of a matrix, in the order in which ``make_loader`` would give the images.

    A ``DataLoader`` by its surface only, so that it stands wherever one of images does: nothing is done per image.

    Args:
        views: matrices (N, F); epoch ``e`` reads ``views[e % len(views)]``.
        samples: the N images that the activations belong to.
        batches: which images, and in which order.
    """

    def __init__(self, views: Sequence[Matrix], samples: Samples, batches: DrawBatches) -> None:
        self._labels = torch.tensor(samples.labels)
        weights = np.ones(len(samples.labels), np.float32) if samples.weights is None else samples.weights
        self._weights = torch.tensor(weights)
        self._batches = batches
        self._on_disk = views
        super().__init__(TensorDataset(self._labels), batch_sampler=batches)  # type: ignore[arg-type]  # only its length is asked for

    @cached_property
    def _views(self) -> Sequence[Tensor | GatheredRows]:
        """The views, read when the first batch is asked for."""
        return _in_memory(self._on_disk)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch promises an iterator of its own class
        """Return the batches of one epoch."""
        indices, sizes = self._batches.indices()
        order = torch.from_numpy(indices)
        view = self._views[self._batches.sampler.epoch % len(self._views)]
        parts = (order, self._labels[order], self._weights[order])
        for index, labels, weights in zip(*(torch.split(part, sizes) for part in parts), strict=True):
            yield {"image": _rows(view, index).float(), "label": labels, "weight": weights, "index": index}


def activation_loader(
    views: Sequence[Matrix],
    samples: Samples,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> ActivationLoader:
    """Return a loader of cached activations that stands where one of images would.

    Args:
        views: matrices (N, F), float32 or float16; epoch ``e`` reads ``views[e % len(views)]``.
        samples: the N images that the activations belong to.
        batch_size: as in ``make_loader``, like the rest.
        shuffle: True for training.
        seed: of the order of the images.
        rank: number of this process.
        world_size: number of processes.
    """
    sampler = DrawSampler(len(samples.labels), shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
    return ActivationLoader(views, samples, DrawBatches(sampler, batch_size))


def _in_memory(views: Sequence[Matrix]) -> list[Tensor | GatheredRows]:
    """Return the views in memory where there is room, else as they lie on disk.

    They stay as they were kept: half as many bytes to gather is worth more than the conversion of each batch costs.
    """
    if sum(view.nbytes for view in views) < MEMORY_SHARE * psutil.virtual_memory().available:
        views = [np.array(view) for view in views]
    return [view if isinstance(view, GatheredRows) else torch.from_numpy(view) for view in views]


def _rows(view: Tensor | GatheredRows, index: Tensor) -> Tensor:
    """Return some rows of a view, (B, F)."""
    if isinstance(view, GatheredRows):
        return torch.from_numpy(view.take(index.numpy()))
    return view.index_select(0, index)


def fits_in_memory(numbers: int) -> bool:
    """Tell whether so many numbers may be held in memory as float32."""
    return 4 * numbers < MEMORY_SHARE * float(psutil.virtual_memory().available)
