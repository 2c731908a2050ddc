"""A fit that was stopped within an epoch: each image of the rest once, whatever the number of processes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from graftline.data.loaders import DrawBatches, DrawSampler
from graftline.features.cache import Features
from graftline.freezing.plan import plan_from_depth
from graftline.training.fit_directory import FitDirectory, read_checkpoint
from graftline.training.phase import fit_phase
from graftline.training.place import Place, epochs_done, passes_done
from graftline.training.recipe import Recipe
from graftline.training.setup import TrainingSetup

NOW = 1e-9  # minutes: after each batch


def batches_of(images: int, batch_size: int, world_size: int) -> list[DrawBatches]:
    """Return what each process has of the fourth epoch."""
    samplers = [
        DrawSampler(images, shuffle=True, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(3)
    return [DrawBatches(sampler, batch_size) for sampler in samplers]


@pytest.mark.parametrize("images", [96, 97, 101, 103])
@pytest.mark.parametrize(("batch_size", "later"), [(4, 1), (4, 3), (4, 4), (1, 5), (6, 2), (7, 3)])
def test_the_rest_of_an_order_is_seen_once_by_any_number_of_processes(images: int, batch_size: int, later: int) -> None:
    for done in range(1, 11):
        seen = [draw.index for one in batches_of(images, 4, 2) for batch in list(one)[:done] for draw in batch]
        after = batches_of(images, batch_size, later)
        whole, left = len(after[0]), after[0].steps(images - len(seen))
        for one in after:
            one.sampler.skip(len(seen))
        parts = [list(one) for one in after]
        steps = [[draw.index for batch in together for draw in batch] for together in zip(*parts, strict=True)]
        assert len(steps) == left, "or those with more would wait for ever"
        assert [len(step) for step in steps] == [after[0].step_images(whole - left + step) for step in range(left)]
        sizes = {len(batch) for part in parts for batch in part}
        assert min(sizes) >= min(2, batch_size)
        together = sorted([*seen, *chain(*steps)])
        assert len(set(together)) == len(together) == images - (later == 1 and (images - len(seen)) % batch_size == 1)
        after[0].sampler.set_epoch(4)
        assert len(list(after[0])) == whole, "the next epoch is whole"


class StoppedError(Exception):
    """Stands for whatever interrupts a training."""


class Record(pl.Callback):
    """Notes the images of each step, and stops the fit after some."""

    def __init__(self, stop_after: int | None) -> None:
        self.seen: list[tuple[int, list[int]]] = []
        self._stop_after = stop_after

    def on_train_batch_start(self, trainer: pl.Trainer, _: Any, batch: Any, *__: Any) -> None:
        if len(self.seen) == self._stop_after:
            raise StoppedError
        self.seen.append((trainer.current_epoch, batch["index"].tolist()))


def make_trainer(record: Record, callbacks: Sequence[pl.Callback], **settings: Any) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", devices=1, callbacks=[*callbacks, record], **settings)


@pytest.mark.parametrize(("batch_size", "stop_after", "ema_decay"), [(4, 13, None), (4, 13, 0.9), (12, 13, None)])
def test_a_fit_goes_on_within_an_epoch(
    make_setup: Callable[..., TrainingSetup],
    tmp_path: Path,
    batch_size: int,
    stop_after: int,
    ema_decay: float | None,
) -> None:
    directory = FitDirectory(tmp_path / "fit")

    def run(record: Record, batch_size: int, *, resume: bool) -> Any:
        recipe = Recipe(batch_size=batch_size, workers=0, checkpoint_minutes=NOW, ema_decay=ema_decay)
        setup = make_setup(recipe=recipe, features=Features(cache=False), make_trainer=partial(make_trainer, record))
        plan = plan_from_depth(setup.graft.network, 6, "test", epochs=3)
        return fit_phase(setup, plan, directory, resume=resume, show_progress=False)

    first, second = Record(stop_after), Record(None)
    with pytest.raises(StoppedError):
        run(first, 4, resume=False)
    checkpoint = read_checkpoint(directory.last)
    assert Place.read(checkpoint) == Place(4 * 4, 4, 9), "four batches of the second epoch"
    assert epochs_done(checkpoint) == 1
    result = run(second, batch_size, resume=True)
    seen = [image for epoch, images in first.seen + second.seen if epoch == 1 for image in images]
    assert sorted(seen) == list(range(36))
    assert sorted(image for epoch, images in second.seen if epoch == 2 for image in images) == list(range(36))
    assert [epoch["epoch"] for epoch in result.history.epochs] == [0, 1, 2]
    assert result.history.steps == 13 + len(second.seen)
    assert read_checkpoint(directory.last)["lr_schedulers"][0]["last_epoch"] == 3 * 36 // batch_size


def test_a_fit_goes_on_in_an_epoch_that_has_become_shorter(
    make_setup: Callable[..., TrainingSetup], tmp_path: Path
) -> None:
    """As it does with a time limit, where less is left: a batch of the epoch is done anew, and the rate falls on."""
    directory = FitDirectory(tmp_path / "fit")

    def run(record: Record, epoch_images: int, *, resume: bool) -> Any:
        recipe = Recipe(batch_size=4, workers=0, checkpoint_minutes=NOW)
        setup = make_setup(recipe=recipe, features=Features(cache=False), make_trainer=partial(make_trainer, record))
        plan = replace(plan_from_depth(setup.graft.network, 6, "test", epochs=3), epoch_images=epoch_images)
        return fit_phase(setup, plan, directory, resume=resume, show_progress=False)

    first, second = Record(11), Record(None)
    with pytest.raises(StoppedError):
        run(first, 24, resume=False)
    assert Place.read(read_checkpoint(directory.last)) == Place(5 * 4, 4, 6)
    result = run(second, 8, resume=True)
    assert [epoch for epoch, _ in second.seen] == [1, 2, 2]
    assert [epoch["epoch"] for epoch in result.history.epochs] == [0, 1, 2]
    assert read_checkpoint(directory.last)["lr_schedulers"][0]["last_epoch"] == round(11 * 2 / 6) + 3


def test_short_epochs_are_parts_of_a_pass() -> None:
    def passes(place: dict[str, int] | None, images: int, together: int = 1) -> float:
        return passes_done({"epoch": 7, **({} if place is None else {"place": place})}, images, together)

    short = {"images": 0, "images_per_batch": 20, "steps_per_epoch": 5}
    assert passes(short, 1_000) == pytest.approx(8 * 0.1)
    assert passes(short, 1_000, together=2) == pytest.approx(8 * 0.2)
    assert passes(short, 119) == passes(short, 90) == passes(None, 1_000) == 8, "a batch that is not full is left out"
    assert passes({**short, "images": 40}, 1_000) == pytest.approx(7 * 0.1)
