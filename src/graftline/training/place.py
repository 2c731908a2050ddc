"""Where in an epoch a checkpoint was made, so that a resume trains on each image of the rest once.

The order of an epoch depends on seed and epoch only, and all processes take turns through it: so many images of it are
done. A resume may have another number of processes, or images per step, and takes up the order there. Where the rest is
too little for a step, the last step of the epoch is done again, so that the epoch is judged.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from graftline.data.loaders import Batch, DrawBatches, draw_batches
from graftline.training.fit_directory import FitDirectory

KEY = "place"  # in a checkpoint


@dataclass(frozen=True)
class Place:
    """Where in an epoch a checkpoint was made.

    Attributes:
        images: of the epoch's order that are done, by all processes together; 0: the epoch is whole.
        images_per_batch: of all processes.
        steps_per_epoch: optimizer steps.
    """

    images: int
    images_per_batch: int
    steps_per_epoch: int

    @classmethod
    def read(cls, checkpoint: Mapping[str, Any]) -> "Place | None":
        """Return that of a checkpoint; None if it is of an earlier graftline: the epoch is whole."""
        return cls(**checkpoint[KEY]) if KEY in checkpoint else None


def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """Return how many whole epochs a checkpoint has behind it."""
    place = Place.read(checkpoint)
    return int(checkpoint["epoch"]) + (place is None or place.images == 0)


def passes_done(checkpoint: Mapping[str, Any], images: int, steps_together: int) -> float:
    """Return how often the whole epochs that a checkpoint has behind it have seen each training image.

    Args:
        checkpoint: of a fit, whose epochs may have seen a part of the images each.
        images: of the training split.
        steps_together: batches whose gradients make one optimizer step.
    """
    place, share = Place.read(checkpoint), 1.0
    if place is not None:
        step = place.images_per_batch * steps_together
        seen = place.steps_per_epoch * step
        share = seen / images if seen <= images - step else 1.0  # a single last image may be left out
    return epochs_done(checkpoint) * share


class EpochPlace(pl.Callback):
    """Keeps the place in each checkpoint, and takes up there.

    Args:
        loader: of the training images, by ``make_loader`` or one that stands for it.
    """

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self._loader = loader
        self._begun = (0, 0, 0)  # epoch, images and batches of it that were done when this process began

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 - Lightning's signature
        checkpoint: dict[str, Any],
    ) -> None:
        """Note the place."""
        done, batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready, self._batches(trainer)
        epoch, images, skipped = self._begun
        if epoch != trainer.current_epoch:
            images, skipped = 0, 0
        so_far = images + (done - skipped) * self._order.images_per_step
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
        place = Place(so_far if done < batches else 0, self._order.images_per_step, steps)
        checkpoint[KEY] = asdict(place)

    def on_load_checkpoint(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 - Lightning's signature
        checkpoint: dict[str, Any],
    ) -> None:
        """Tell sampler and loops where to take up, and the schedule where it stands."""
        place, sampler, epoch = Place.read(checkpoint), self._order.sampler, int(checkpoint["epoch"])
        if place is None or place.images == 0:
            sampler.set_epoch(epoch + 1)
        else:
            sampler.set_epoch(epoch)
            done, skipped = self._done(trainer, place.images)
            sampler.skip(done)
            self._begun = epoch, done, skipped
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
            progress.update(
                ready=skipped, started=skipped, processed=skipped, completed=skipped - 1
            )  # Lightning adds 1
        steps = math.ceil(self._batches(trainer) / trainer.accumulate_grad_batches)
        if place is not None and place.steps_per_epoch != steps:
            for schedule in checkpoint["lr_schedulers"]:
                schedule["last_epoch"] = round(schedule["last_epoch"] * steps / place.steps_per_epoch)

    @property
    def _order(self) -> DrawBatches:
        return draw_batches(self._loader)

    def _batches(self, trainer: pl.Trainer) -> int:
        """Return how many batches a whole epoch has for this process."""
        all_batches, limit = len(self._loader), trainer.limit_train_batches
        return min(all_batches, limit) if isinstance(limit, int) else int(all_batches * limit)

    def _done(self, trainer: pl.Trainer, images: int) -> tuple[int, int]:
        """Return how many images of an epoch are done, and how many of its batches; one is left at least."""
        order, batches = self._order, self._batches(trainer)
        is_limited = batches < len(self._loader)
        end = batches * order.images_per_step if is_limited else order.sampler.epoch_images
        if (left := order.steps(end - images)) > 0:
            return images, batches - left
        return (batches - 1) * order.images_per_step, batches - 1


class TimedCheckpoint(pl.Callback):
    """Writes the last checkpoint within an epoch too, after an optimizer step.

    Args:
        directory: of the fit.
        minutes: between two of them.
    """

    def __init__(self, directory: FitDirectory, minutes: float) -> None:
        self._directory = directory
        self._seconds = 60 * minutes
        self._last = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 - Lightning's signature
        outputs: Any,
        batch: Any,  # noqa: ARG002 - likewise
        batch_idx: int,
    ) -> None:
        """Write it if it is time, all processes together: rank 0 says so."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.is_last_batch:
            return
        is_sound = bool(torch.isfinite(outputs["loss"]))
        if trainer.strategy.broadcast(is_sound and time.monotonic() - self._last >= self._seconds):
            trainer.save_checkpoint(self._directory.last)
            self._last = time.monotonic()
