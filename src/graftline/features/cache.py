"""The activation cache: what the frozen trunk gives for each image, computed once and read from disk at every epoch.

Letters: B batch, N images, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from graftline.augment.draw import Draw, Transform
from graftline.console import progress
from graftline.data.loaders import Batch, DrawSampler, make_loader
from graftline.data.version import Samples
from graftline.features.engine import Engine
from graftline.files import atomic_file, digest


class ActivationDataset(Dataset[Batch]):
    """Cached activations, sliced from memory a whole batch at a time.

    Args:
        views: arrays (N, F); epoch ``e`` reads ``views[e % len(views)]``.
        samples: the N images that the activations belong to.
    """

    def __init__(self, views: Sequence[np.ndarray], samples: Samples) -> None:
        self._views = [torch.from_numpy(view) for view in views]
        self._labels = torch.tensor(samples.labels)
        weights = np.ones(len(samples.labels), np.float32) if samples.weights is None else samples.weights
        self._weights = torch.tensor(weights)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        """Return the batch of these draws, all of one epoch; torch's loader asks here first."""
        index = torch.tensor([draw.index for draw in draws])
        activations = self._views[draws[0].epoch % len(self._views)]
        return {
            "image": activations[index],
            "label": self._labels[index],
            "weight": self._weights[index],
            "index": index,
        }


def activation_loader(
    views: Sequence[np.ndarray],
    samples: Samples,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
) -> DataLoader[Batch]:
    """Return a loader of cached activations that stands where one of images would; arguments as in ``make_loader``."""
    sampler = DrawSampler(len(samples.labels), shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
    return DataLoader(
        ActivationDataset(views, samples),
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        collate_fn=lambda batch: batch,
    )


@dataclass(frozen=True)
class Features:
    """Whether and how the frozen trunk's activations are cached (Hydra target of conf/features/*.yaml).

    Attributes:
        cache: compute the activations once; False: run the frozen trunk at every step, with fresh augmentation.
        views: augmented versions of each training image, one per epoch in turn; 0: the plain version only.
        directory: where activations and exported trunks lie.
    """

    cache: bool = True
    views: int = 0
    directory: str = "cache/activations"

    def trunk_file(self, key: dict[str, Any]) -> Path:
        """Return where the ONNX export of the trunk that ``key`` describes lies."""
        return Path(self.directory) / f"trunk-{digest(key)}.onnx"

    def activations(
        self, engine: Engine, jobs: Sequence[tuple[Samples, Transform, int, dict[str, Any]]], *, workers: int
    ) -> list[np.ndarray]:
        """Return the activations (N, F) float32 of each job, from disk or computed now.

        Args:
            engine: runs the trunk.
            jobs: images, transform, view (the epoch of the draws) and a key that names all that the result depends on.
            workers: loader processes.
        """
        files = [Path(self.directory) / f"{digest(key)}.npy" for *_, key in jobs]
        missing = [(file, *job[:3]) for file, job in zip(files, jobs, strict=True) if not file.exists()]
        if missing:
            with progress(
                "Running the frozen network once", total=sum(len(samples.paths) for _, samples, *_ in missing)
            ) as bar:
                for file, samples, transform, view in missing:
                    with atomic_file(file) as temporary:
                        np.save(temporary, _run(engine, samples, transform, view, workers, bar.advance))
        return [np.load(file, mmap_mode="c") for file in files]


def _run(engine: Engine, samples: Samples, transform: Transform, view: int, workers: int, advance: Any) -> np.ndarray:
    """Return the activations (N, F) of ``samples`` in their order, while worker processes decode what comes next."""
    loader = make_loader(samples, transform, batch_size=32, shuffle=False, seed=0, workers=workers)
    assert isinstance(loader.sampler, DrawSampler)
    loader.sampler.set_epoch(view)
    parts = []
    for batch in loader:
        parts.append(engine(batch["image"]))
        advance(0, len(parts[-1]))
    return np.concatenate(parts)
