"""A training with a time limit: its last fit is cut to it, and its learning rate falls by the clock."""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl

from graftline.augment.preprocess import Preprocessing
from graftline.backbones.weights import Weights
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import save_bundle
from graftline.data import loaders
from graftline.data.decode import decode_rgb
from graftline.data.image_memory import ImageMemory
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.freezing.depth import MOST_DEEP_EPOCHS, PASSES_PER_STEP
from graftline.freezing.plan import FreezePlan, plan_from_depth
from graftline.pipeline.training.drift_reference import leave_reference
from graftline.training import budget, image_seconds, phases
from graftline.training.budget import (
    OVERHEAD_SECONDS,
    average_seconds,
    check_budget,
    check_clock,
    cut_to,
    cut_to_deadline,
    end_seconds,
    passes,
    timed,
)
from graftline.training.events import FitEvents
from graftline.training.fit_directory import FitDirectory
from graftline.training.image_seconds import seconds_per_image
from graftline.training.phase import _cut
from graftline.training.phases import train
from graftline.training.recipe import Recipe
from graftline.training.schedule import by_clock, warmup_cosine
from graftline.training.setup import TrainingSetup
from graftline.training.training_source import LiveSource, TrainingSource
from graftline.training.trial import make_freeze_context

MakeSetup = Callable[..., TrainingSetup]


@pytest.mark.long
def test_the_last_fit_ends_when_its_time_is_over(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = make_setup(features=Features(cache=False))
    plan = plan_from_depth(setup.graft.network, 0, "", epochs=2, learning_rate=0.001)
    directory = FitDirectory(tmp_path)
    result = train(setup, [plan], directory, deadline=time.monotonic() + 0.3)
    longer = train(setup, [plan], FitDirectory(tmp_path / "longer"), deadline=time.monotonic() + 4.0)
    assert result.kept.planned_epochs == 2  # of the plan, not of the clock
    assert 1 <= len(result.history.epochs) <= 30
    assert longer.history.steps > result.history.steps
    unlimited = train(setup, [plan], FitDirectory(tmp_path / "unlimited"))
    assert len(unlimited.history.epochs) == 2


class Sources(FitEvents):
    """Keeps what the fits are on."""

    def __init__(self) -> None:
        self.kept: list[TrainingSource] = []

    def on_source(self, source: TrainingSource) -> None:
        self.kept.append(source)


def test_a_head_on_cached_activations_takes_its_epochs_whatever_the_time(
    make_setup: MakeSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees a part of many validation images, and its bundle's reference is of all of them."""
    monkeypatch.setattr(phases, "MOST_VALIDATED", 6)
    setup, sources = make_setup(), Sources()
    plan = plan_from_depth(setup.graft.network, 6, "", epochs=3, learning_rate=0.01)
    result = train(setup, [plan], FitDirectory(tmp_path / "fit"), events=sources, deadline=time.monotonic())
    assert len(result.history.epochs) == 3
    (source,) = sources.kept
    assert source.setup.version.num_images("validation") == 6
    bundle = save_bundle(
        tmp_path / "bundle",
        setup.graft.network,
        timm_name="test_efficientnet",
        class_names=setup.version.class_names,
        preprocessing=setup.graft.preprocessing,
        card={},
    )
    predictor = Predictor.from_directory(bundle)
    left, computed = (leave_reference(predictor, bundle, setup.version, one).observed for one in (source, None))
    np.testing.assert_array_equal(left.embeddings, computed.embeddings)
    np.testing.assert_array_equal(left.confidences, computed.confidences)


class Seen(pl.Callback):
    """Notes the images of each step."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        self.batches.append(batch["index"].tolist())


def make_trainer(seen: Seen, callbacks: Sequence[pl.Callback], **settings: Any) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", devices=1, callbacks=[*callbacks, seen], **settings)


@pytest.mark.parametrize(("epoch_images", "each"), [(12, 12), (7, 12), (17, 12), (19, 24), (35, 36)])
def test_epochs_of_a_part_of_the_images_take_the_next_whole_steps_each(
    make_setup: MakeSetup, tmp_path: Path, epoch_images: int, each: int
) -> None:
    seen = Seen()
    setup = make_setup(features=Features(cache=False), make_trainer=functools.partial(make_trainer, seen))
    plan = plan_from_depth(setup.graft.network, 6, "", epochs=3, learning_rate=0.01)
    history = train(setup, [replace(plan, epoch_images=epoch_images)], FitDirectory(tmp_path)).history
    assert {len(batch) for batch in seen.batches} == {12}
    assert history.steps == len(seen.batches) == 3 * each // 12
    images = [image for batch in seen.batches for image in batch]
    assert sorted(images[:36]) == list(range(36))


def test_what_a_clock_cannot_end_is_refused() -> None:
    trainer = functools.partial(pl.Trainer, accelerator="cpu")
    check_clock(trainer, Execution())
    with pytest.raises(UserError, match=r"in one process: .* Give Trainer\.devices=1, or train without a time limit"):
        check_clock(trainer, Execution(world_size=2))
    with pytest.raises(UserError, match=r"Trainer\.min_epochs: leave one of them out"):
        check_clock(functools.partial(trainer, min_epochs=3), Execution())


def test_the_schedule_goes_by_steps_or_by_the_clock() -> None:
    slow = by_clock(warmup_cosine, 1000.0)
    assert [slow(step, 10) for step in range(10)] == [warmup_cosine(step, 10) for step in range(10)]
    late = by_clock(warmup_cosine, 0.02)
    assert late(0, 100) == warmup_cosine(0, 100)
    late(1, 100)  # the clock starts here
    time.sleep(0.03)
    assert late(2, 100) == warmup_cosine(100, 100)


def test_a_plan_is_cut_to_rounds_of_equal_length(make_setup: MakeSetup) -> None:
    plan = plan_from_depth(make_setup().graft.network, 0, "it pays", epochs=9)
    short = cut_to(plan, seconds=40, images=(1_000, 0), image_seconds=0.1, most=30)
    assert (short.epochs, short.epoch_images, short.seconds) == (8, 50, 40)
    assert short.decision == "it pays, for 40 s"
    assert cut_to(plan, seconds=1_600, images=(1_000, 0), image_seconds=0.1, most=30).epochs == 16
    assert cut_to(plan, seconds=1_600, images=(1_000, 0), image_seconds=0.1, most=5).epochs == 5
    slow = cut_to(plan, seconds=100, images=(1_000, 300), image_seconds=0.1, most=30)
    assert (slow.epochs, slow.epoch_images) == (2, 400)  # a validation takes 10 s


@pytest.mark.parametrize("step", [0.002, 0.03, 0.4])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_a_plan_takes_the_time_that_it_is_given_within_a_tenth(step: float, share: float) -> None:
    """On a machine that is as fast as it was measured to be, unless no image may be seen so often."""
    plan, compared = FreezePlan(frozenset(), 0, 9, "it pays"), 0
    for images, seconds in itertools.product((100, 450, 1_000, 7_000, 60_000), (20, 45, 120, 300, 1_000, 3_600)):
        validation = int(share * images)
        validated = validation * step / 3  # forward alone, of forward and backward
        if seconds < 4 * validated:
            continue  # is refused, where it is the whole time: two rounds would validate for longer than they train
        cut = cut_to(plan, seconds, (images, validation), step, most=30)
        needed = cut.epochs * ((cut.epoch_images or images) * step + validated)
        whole_images = cut.epochs * step  # a round has a whole number of them
        assert needed == pytest.approx(seconds, abs=0.1 * seconds + whole_images) or cut.epochs == 30
        assert needed <= 1.1 * seconds + whole_images
        compared += cut.epochs < 30
    assert compared >= 8


@pytest.mark.parametrize("most", [3, 8, 30])
def test_more_time_is_more_training_up_to_what_the_user_says(most: int) -> None:
    plan = FreezePlan(frozenset(), 0, 9, "it pays")
    cuts = [cut_to(plan, seconds, images=(1_000, 0), image_seconds=0.1, most=most) for seconds in range(10, 4_000, 10)]
    seen = [cut.epochs * (cut.epoch_images or 1_000) for cut in cuts]
    assert seen == sorted(seen)
    assert max(seen) == most * 1_000


def test_with_a_deadline_a_fit_sees_its_images_as_often_as_the_time_allows(make_setup: MakeSetup) -> None:
    setup = make_setup()
    plan = plan_from_depth(setup.graft.network, 0, "it pays", epochs=5)
    assert passes(setup, [plan], None) == 5
    assert passes(setup, [plan], time.monotonic() + 1_000) == MOST_DEEP_EPOCHS
    own = replace(setup, make_trainer=functools.partial(setup.make_trainer, max_epochs=7))
    assert passes(own, [plan, plan], time.monotonic() + 1_000) == 7


def test_what_the_time_cuts_is_told_by_its_seconds(make_setup: MakeSetup) -> None:
    """A head on cached activations takes its epochs, and what is done already took them."""
    setup = make_setup()
    head, deep = (plan_from_depth(setup.graft.network, frozen, "decided", epochs=8) for frozen in (6, 0))

    def told(setup: TrainingSetup, *plans: FreezePlan, finished: int = 0, limited: bool = True) -> list[int | None]:
        deadline = time.monotonic() + 10_000 if limited else None
        seconds = [plan.seconds for plan in timed(setup, plans, deadline, finished)]
        return [None if one is None else round(one / 100) for one in seconds]

    assert told(setup, head, deep) == [None, 100]
    assert told(setup, deep, deep) == [50, 50]
    assert told(setup, deep, deep, finished=1) == [None, 100]
    assert told(make_setup(features=Features(cache=False)), head) == [100]
    assert told(setup, head, deep, limited=False) == [None, None]


def test_a_time_that_is_too_short_for_one_pass_is_refused(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch, version: DatasetVersion
) -> None:
    monkeypatch.setattr(image_seconds, "decode_seconds", lambda _samples, _execution: 1e-9)
    setup = make_setup()
    assert seconds_per_image(setup) > 0
    tested = sum(version.counts()["test"].values())
    assert OVERHEAD_SECONDS < end_seconds(setup) < OVERHEAD_SECONDS + tested
    check_budget(setup, 60.0, minutes=2)
    with pytest.raises(
        UserError, match=r"48 images take about .* s to pass .*: give Train\.minutes=2 .*, or a smaller"
    ):
        check_budget(setup, -10.0, minutes=1)


def test_where_images_are_small_a_smaller_size_is_named_with_theirs(make_setup: MakeSetup) -> None:
    setup = make_setup()
    larger = replace(setup, graft=replace(setup.graft, preprocessing=Preprocessing((96, 96), (0.5,) * 3, (0.5,) * 3)))
    side = setup.version.typical_side()
    with pytest.raises(
        UserError, match=rf"or a smaller Backbone\.image_size than 96, as nine in ten images are at most {side} px wide"
    ):
        check_budget(larger, -10.0, minutes=1)


def test_the_end_of_a_run_passes_validation_images_twice_and_decodes_them_thrice(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the calibration and for the reference, with 12 validation and 12 test images."""
    monkeypatch.setattr(image_seconds, "decode_seconds", lambda _samples, _execution: 1.0)
    monkeypatch.setattr(image_seconds, "_time_steps", lambda *_: 0.1 * PASSES_PER_STEP)
    assert end_seconds(make_setup()) == pytest.approx(OVERHEAD_SECONDS + 12 * 1.1 + 12 * (2 * 1.1 + 1.0))


def test_many_test_images_of_many_classes_take_time_to_score(
    make_setup: MakeSetup, version: DatasetVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_seconds, "decode_seconds", lambda _samples, _execution: 0.0)
    monkeypatch.setattr(image_seconds, "_time_steps", lambda *_: 0.0)
    table = version.table()
    tested = pd.concat([table[table["split"] == "test"]] * 1_000, ignore_index=True)  # 12,000 images
    names = tuple(f"class {number}" for number in range(1_000))
    rows = [table[table["split"] == "train"].assign(label=names[0]), tested.assign(label=12 * names)]
    many = replace(version, class_names=names)._with_table(pd.concat(rows, ignore_index=True))
    setup, expected = make_setup(version=many), OVERHEAD_SECONDS + 12.0
    assert end_seconds(setup) == pytest.approx(expected)
    assert average_seconds(setup, members=3, crops=2) == pytest.approx(expected)


def test_each_view_is_a_pass_that_takes_time(
    make_setup: MakeSetup, version: DatasetVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_seconds, "decode_seconds", lambda _samples, _execution: 1e-9)
    train, validation = (version.num_images(split) for split in ("train", "validation"))
    setup = make_setup(features=Features(views=8))
    seconds = seconds_per_image(setup) * (4 * train + validation) / PASSES_PER_STEP
    with pytest.raises(UserError, match=r"48 images, 8 views of each training image, take about .* s to pass"):
        check_budget(setup, seconds, minutes=1)
    live = replace(setup, features=Features(cache=False, views=8))
    check_budget(live, seconds, minutes=1)


def test_where_nothing_is_cached_two_validated_rounds_will_do(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 36 images; three are validated in a third of a step each. A pass takes a fifth of a step for each of 39."""
    monkeypatch.setattr(budget, "MOST_VALIDATED", 3)
    monkeypatch.setattr(image_seconds, "decode_seconds", lambda _samples, _execution: 1e-9)
    monkeypatch.setattr(image_seconds, "_time_steps", lambda *_: 1.0)
    setup = make_setup()
    with pytest.raises(UserError, match=r"39 images take about 8 s to pass through the network once"):
        check_budget(setup, 7.7, minutes=1)
    check_budget(setup, 7.9, minutes=1)
    live = make_setup(features=Features(cache=False))
    mixed = make_setup(recipe=Recipe(mixup_alpha=0.2))
    untaught = replace(setup, graft=replace(setup.graft, weights=Weights("none")))
    for one, freezes in ((setup, False), (live, True), (mixed, True), (untaught, True)):
        check_budget(one, 4.1, minutes=1, freezes=freezes)
        with pytest.raises(UserError, match=r"^2 rounds, each validated by 3 images, take about 4 s, more than"):
            check_budget(one, 3.9, minutes=1, freezes=freezes)


def test_images_that_take_long_to_decode_need_more_time(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch, version: DatasetVersion
) -> None:
    setup = make_setup()
    images = sum(sum(version.counts()[split].values()) for split in ("train", "validation"))
    tested = sum(version.counts()["test"].values())
    before, decoding = end_seconds(setup), 0.05 / setup.execution.num_threads

    def slow(path: str, decoding: Any) -> np.ndarray:
        time.sleep(0.05)
        return decode_rgb(path, decoding)

    monkeypatch.setattr(loaders, "decode_rgb", slow)
    other = make_setup()
    assert end_seconds(other) > before + decoding * tested / 2
    with pytest.raises(UserError, match=r"48 images take about"):
        check_budget(other, decoding * images, minutes=1)
    check_budget(other, 2 * decoding * images + 60, minutes=1)
    with pytest.raises(UserError, match=r"\), or smaller files, as most of that is decoding \(\d+ ms an image\)"):
        check_budget(other, 0.0, minutes=1)
    samples = replace(version.samples("train"), sizes=np.full((36, 2), 128))
    samples = replace(samples, paths=[*samples.paths[:17], *["image.JPG"] * 19])
    monkeypatch.setattr(DatasetVersion, "samples", lambda _self, _split: samples)
    with pytest.raises(UserError, match=r"\), or DecodeSettings\.jpeg_side_px=64, as most of that is decoding"):
        check_budget(other, 0.0, minutes=1)
    context = make_freeze_context(other, FitDirectory(Path()))
    assert context.pass_share > 1 / PASSES_PER_STEP + decoding / seconds_per_image(other)


def test_live_rounds_are_planned_with_the_decoding_of_their_images(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_seconds, "decode_seconds", lambda _samples, _execution: 0.07)
    monkeypatch.setattr(image_seconds, "_time_steps", lambda *_: 0.01)
    setup = make_setup(features=Features(cache=False))
    plan = plan_from_depth(setup.graft.network, 0, "it pays", epochs=5)
    forgetful, kept = LiveSource(replace(setup, images=ImageMemory(0.0)), ""), LiveSource(setup, "")

    def planned(source: LiveSource) -> FreezePlan:
        return _cut(source, plan, time.monotonic() + 8.2, None)

    assert forgetful.images_to_decode() is None
    assert planned(forgetful).epochs <= 8.2 / (36 * 0.08 + 12 * 0.07)
    assert kept.images_to_decode() == 48
    assert planned(kept).epochs == pytest.approx((8.2 - 48 * 0.07) / (36 * 0.01 + 12 * 0.01 / 3), abs=1.5)
    for loader in kept.make_loaders():
        assert sum(len(batch["label"]) for batch in loader) in (36, 12)
    assert kept.images_to_decode() == 0
    assert planned(kept).epochs == pytest.approx(8.2 / (36 * 0.01 + 12 * 0.01 / 3), abs=1.5)


def test_a_resume_has_the_epochs_that_are_left_however_much_time_there_is(make_setup: MakeSetup) -> None:
    setup = make_setup()
    plan = plan_from_depth(setup.graft.network, 0, "it pays", epochs=5)
    own = replace(setup, make_trainer=functools.partial(setup.make_trainer, max_epochs=7))

    def planned(setup: TrainingSetup, seconds: float, done: int, seen: float | None = None) -> int:
        passes = done if seen is None else seen
        return cut_to_deadline(setup, plan, time.monotonic() + seconds, 0.001, done=done, seen=passes).epochs

    assert [planned(own, 10_000, done) for done in (0, 4, 7, 9)] == [7, 7, 7, 9]
    assert [planned(setup, 10_000, done) for done in (0, 20)] == [MOST_DEEP_EPOCHS, MOST_DEEP_EPOCHS]
    assert planned(own, 10_000, 8, seen=0.8) == 8 + 7, "eight short epochs are less than one pass over the images"


def test_a_plan_of_many_epochs_keeps_them_where_there_is_time(make_setup: MakeSetup) -> None:
    setup = make_setup()
    plan = plan_from_depth(setup.graft.network, 0, "the weights are random", epochs=60)
    assert cut_to_deadline(setup, plan, time.monotonic() + 10_000, 0.001).epochs == 60
