"""The freeze rule ``measured`` on real small fits: when it goes deeper, when it stops, that trials leave no trace."""

import functools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import scipy.stats  # type: ignore[import-untyped, unused-ignore]
import timm
import torch

from graftline.augment.policy import Policy
from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Graft
from graftline.backbones.weights import Weights
from graftline.console import console
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.freezing.depth import deep_plan
from graftline.freezing.measured import Measured
from graftline.freezing.measurement import LEAST_GAIN, BoundaryResult, DepthMeasurement, Difference
from graftline.freezing.plan import plan_from_depth
from graftline.freezing.rule import FreezeContext, FreezeDecision
from graftline.pipeline.training.result import print_measurement
from graftline.training.fit_directory import FitDirectory
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant
from graftline.training.setup import TrainingSetup
from graftline.training.trial import Trials, keep_trials, make_freeze_context

PREPROCESSING = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
RULE = Measured(depths=(0.75, 0.5), trial_images=24)


@pytest.fixture(scope="module")
def version(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    split = Split(train=0.4, validation=0.5, test=0.1, seed=0, existing=True)
    ingest = Ingest(None, str(color_folder), Folder(), split, directory=str(tmp_path_factory.mktemp("data")))
    return ingest.run().version


def make_setup(graft: Graft, version: DatasetVersion, epochs: int | None = None) -> TrainingSetup:
    return TrainingSetup(
        graft=graft,
        version=version,
        policy=Policy("none", None, {}),
        features=Features(cache=False),  # a trunk's export takes longer than the rest
        recipe=Recipe(batch_size=3, workers=0, patience=1),
        optimizer=functools.partial(torch.optim.AdamW, lr=0.01),
        schedule=constant,
        make_trainer=functools.partial(pl.Trainer, accelerator="cpu", max_epochs=epochs),
        execution=Execution(),
        seed=0,
    )


def decide(
    rule: Measured, graft: Graft, version: DatasetVersion, directory: Path, epochs: int | None = None
) -> FreezeDecision:
    """Let the rule decide by real short fits."""
    context = make_freeze_context(make_setup(graft, version, epochs), FitDirectory(directory))
    assert context.epochs == epochs
    return rule.decide(context)


def measured(decision: FreezeDecision) -> DepthMeasurement:
    assert decision.measurement is not None
    return decision.measurement


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps as small as these are not worth sharing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def graft(name: str = "test_efficientnet") -> Graft:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3, drop_rate=0.2)
    return Graft(network, PREPROCESSING, Weights("file", "here", "0" * 64))


def blinded() -> Graft:
    """Return a network whose last layer group gives the same for every image, until it is trained."""
    grafted = graft("test_convnext")
    network: Any = grafted.network
    torch.nn.init.zeros_(network.head.norm.weight)
    torch.nn.init.ones_(network.head.norm.bias)
    return grafted


@pytest.fixture(scope="module")
def deeper(version: DatasetVersion, tmp_path_factory: pytest.TempPathFactory) -> FreezeDecision:
    """What was decided where the head alone can learn nothing."""
    return decide(RULE, blinded(), version, tmp_path_factory.mktemp("deeper"))


def test_it_goes_deeper_where_that_pays(deeper: FreezeDecision) -> None:
    measurement, (tried, plan) = measured(deeper), deeper.plans
    head, *others = measurement.rows
    assert [row.boundary for row in measurement.rows[:3]] == ["head", "stages.2", "stages.3 + head.norm"]
    assert [row.frozen_groups for row in measurement.rows[:3]] == [5, 3, 4]
    assert head.log_loss > np.log(3) - 1e-3  # it knows nothing of the images
    assert measured_gain(head) > LEAST_GAIN * head.log_loss
    assert measurement.chosen in others
    assert measurement.chosen.log_loss == min(row.log_loss for row in others)
    network = blinded().network
    expected = plan_from_depth(network, measurement.chosen.frozen_groups, plan.reason, epochs=26, learning_rate=1e-4)
    assert plan == replace(expected, head_factor=10.0)
    assert tried.trainable == plan.trainable  # what was tried is the first phase, from which the training goes on
    assert tried.reason.startswith(f"found by trials, validation log loss {measurement.chosen.log_loss:.3f} with ")
    assert f"{head.more_log_loss.text()} with the head alone" in tried.reason
    assert len(deeper.tried) == 1


def test_the_whole_network_may_be_trained_after_a_trial_that_pays(version: DatasetVersion, tmp_path: Path) -> None:
    rule = Measured(depths=(0.5,), trial_images=24, final_depth=0.0)
    *_, plan = decide(rule, blinded(), version, tmp_path).plans
    assert (plan.frozen_groups, plan.epochs) == (0, 30)


def test_a_trial_goes_on_from_the_weights_of_another(version: DatasetVersion, tmp_path: Path) -> None:
    setup, directory = make_setup(blinded(), version), FitDirectory(tmp_path)
    plan, trials = deep_plan(setup.graft.network, 3, "tried", 3), Trials(setup, directory)
    first = trials(plan, None, 12)
    second = trials(plan, first, 24)
    assert second.chain() == [first, second]
    assert (first.trained_images, second.trained_images) == (36, 36 + 3 * 24)
    assert second.losses.mean() < first.losses.mean()
    keep_trials(FreezeDecision((plan, plan, plan), tried=(first.folder, second.folder)), directory)
    assert directory.best.exists()
    assert directory.phase(1).best.exists()
    assert not directory.trial.exists()


def test_it_stops_where_the_head_is_enough(version: DatasetVersion, tmp_path: Path) -> None:
    grafted = graft("test_resnet")
    before = {name: tensor.clone() for name, tensor in grafted.network.state_dict().items()}
    useless = functools.partial(torch.optim.AdamW, lr=0.0)  # nothing is learned at any depth
    setup = replace(make_setup(grafted, version), optimizer=useless)
    decision = RULE.decide(make_freeze_context(setup, FitDirectory(tmp_path)))
    measurement, (plan,) = measured(decision), decision.plans
    assert [row.boundary for row in measurement.rows] == ["head", "layer3", "layer4"]
    assert plan.only_head
    assert (plan.epochs, plan.learning_rate) == (30, 0.005)
    assert measurement.chosen.more_log_loss == Difference(0, 0, 0)
    assert measurement.stopped == "more than the head did not pay"
    assert decision.tried == ("05",)  # it is trained already
    after = grafted.network.state_dict()
    assert all(after[name].equal(tensor) for name, tensor in before.items())


def test_a_head_tried_on_a_part_is_still_to_be_trained(
    version: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftline.freezing.depth_search.IMAGES_OF_CLASS", 1)  # or ten of each would be all of them
    useless = functools.partial(torch.optim.AdamW, lr=0.0)
    setup = replace(make_setup(graft("test_resnet"), version), optimizer=useless)
    context = make_freeze_context(setup, FitDirectory(tmp_path))
    decision = Measured(depths=(0.5,), trial_images=12).decide(context)
    (plan,) = decision.plans
    assert plan.only_head
    assert decision.tried == ()
    head, deeper = (row.trained_images for row in measured(decision).rows)
    assert head <= 30 * 12  # on all 24 images the second half of its epochs, in which it may stop early, begins at 384
    assert deeper == 3 * 12
    decision = Measured(depths=(0.5,), trial_images=1).decide(context)  # a tenth of 24 images, one of each class
    assert measured(decision).rows[1].trained_images == 3 * 3


def test_few_validation_images_choose_nothing(version: DatasetVersion, tmp_path: Path) -> None:
    context = make_freeze_context(make_setup(graft(), version), FitDirectory(tmp_path))
    decision = RULE.decide(replace(context, validation_counts=(6, 6, 3)))  # and 24 training images
    (plan,) = decision.plans
    assert plan.only_head
    assert plan.reason.startswith("there are 15 validation images, too few to choose by (20 would do): all 6")
    assert decision.measurement is None


@pytest.mark.parametrize("pays", [True, False])
def test_few_validation_images_are_judged_with_the_training_images_by_fits_without_them(
    version: DatasetVersion, tmp_path: Path, *, pays: bool
) -> None:
    setup = make_setup(blinded(), version, epochs=4)
    if not pays:
        setup = replace(setup, optimizer=functools.partial(torch.optim.AdamW, lr=0.0))
    context = make_freeze_context(setup, FitDirectory(tmp_path))
    before = {name: tensor.clone() for name, tensor in setup.graft.network.state_dict().items()}
    decision = Measured(depths=(0.5,)).decide(replace(context, validation_counts=(6, 6, 7)))
    (plan,), measurement = decision.plans, measured(decision)
    assert plan.only_head is not pays
    assert plan.epochs == 4
    assert plan.reason.startswith("found by trials, out-of-fold log loss ")
    assert measurement.judged_by == "54 images, each by a fit without it"
    assert {row.images for row in measurement.rows} == {36}, "two of three folds"
    assert decision.tried == ()  # it is yet to be trained, on all training images
    assert FreezeDecision.from_json(json.loads(json.dumps(decision.to_json()))) == decision
    after = setup.graft.network.state_dict()
    assert all(after[name].equal(tensor) for name, tensor in before.items())
    keep_trials(decision, FitDirectory(tmp_path))
    assert not list(tmp_path.iterdir())


def test_where_folds_are_large_one_of_them_judges(
    version: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("graftline.freezing.evidence.ENOUGH_IN_FOLD", 14)  # of 43, and of 54, there are
    context = make_freeze_context(make_setup(blinded(), version), FitDirectory(tmp_path))
    with caplog.at_level("INFO", "graftline"):
        decision = Measured(depths=(0.5,)).decide(replace(context, validation_counts=(6, 6, 7)))
    measurement = measured(decision)
    assert measurement.judged_by == "18 images, each by a fit without it"
    assert {row.images for row in measurement.rows} == {36}
    assert not decision.plans[-1].only_head
    assert "too few to choose by (20 would do). Ingest.parent='none' with Split.existing=False" in caplog.messages[0]


def measured_gain(head: BoundaryResult) -> float:
    """Return by how much the head's log loss is above that of the chosen boundary, where that is likely."""
    assert head.more_log_loss.value > 1.28 / 1.96 * (head.more_log_loss.value - head.more_log_loss.low)
    return head.more_log_loss.value


def test_the_paired_interval_is_scipys() -> None:
    generator = np.random.default_rng(0)
    hard = generator.exponential(2.0, 200)  # an image that is hard for both says nothing about which is better
    first, second = hard + generator.normal(0.1, 0.1, 200), hard
    difference = Difference.of(first, second)
    low, high = scipy.stats.norm.interval(0.95, np.mean(first - second), scipy.stats.sem(first - second))
    assert (difference.low, difference.high) == pytest.approx((low, high), abs=1e-5)
    unpaired = scipy.stats.norm.interval(0.95, 0.1, np.hypot(scipy.stats.sem(first), scipy.stats.sem(second)))
    assert difference.high - difference.low < 0.1 * (unpaired[1] - unpaired[0])
    one = Difference.of(np.array([1.0]), np.array([3.0]))
    assert (one.value, one.low, one.high) == (-2, -np.inf, np.inf)
    assert not one.is_below_zero  # one image decides nothing
    assert Difference.of(second, first).is_below_zero
    assert not difference.is_below_zero
    assert not Difference(-0.1, -0.3, 0.1).is_below_zero


def test_the_time_bounds_the_trials(version: DatasetVersion, tmp_path: Path) -> None:
    context = make_freeze_context(
        make_setup(graft(), version), FitDirectory(tmp_path), deadline=time.monotonic() + 0.01
    )
    decision = RULE.decide(context)
    (plan,) = decision.plans
    assert plan.only_head
    assert plan.reason.startswith("the time does not allow for a trial: ")
    assert decision.measurement is None, "a head on images takes the time that there is"


def test_other_epochs_measure_nothing_again(deeper: FreezeDecision) -> None:
    context = FreezeContext(blinded().network, 24, pretrained=True, epochs=7)  # in which nothing can be tried
    changed = RULE.change_epochs(deeper, context)
    assert changed.plans == (deeper.plans[0], replace(deeper.plans[1], epochs=7))
    assert changed.measurement == deeper.measurement
    assert RULE.change_epochs(changed, replace(context, epochs=None)) == deeper
    with pytest.raises(ValueError, match="try_boundary"):
        RULE.decide(replace(context, validation_counts=(9, 9, 9)))


def test_random_weights_are_not_measured(version: DatasetVersion, tmp_path: Path) -> None:
    grafted = replace(graft(), weights=Weights("none"))
    decision = decide(RULE, grafted, version, tmp_path)
    (plan,) = decision.plans
    assert decision.measurement is None
    assert plan.trainable == {name for name, _ in grafted.network.named_parameters()}
    assert (plan.epochs, plan.learning_rate) == (60, 0.001)
    assert "the weights are random" in plan.reason


def test_it_comes_back_from_json_and_is_printed(deeper: FreezeDecision) -> None:
    assert FreezeDecision.from_json(json.loads(json.dumps(deeper.to_json()))) == deeper
    with console.capture() as capture:
        print_measurement(measured(deeper))
    lines = capture.get().splitlines()
    assert [word for line in lines if (word := line.split()[0]) in ("head", "stages.3", "stages.2")][:3] == [
        "head",
        "stages.2",
        "stages.3",
    ]
    assert lines[-1] == "The best trial goes on."
    changes: dict[str, Any] = {"cached": False, "trained_parameters": 3_319_347, "pass_seconds": 293.0}
    live = [replace(row, **changes) for row in measured(deeper).rows]
    with console.capture() as capture:
        print_measurement(replace(measured(deeper), rows=tuple(live)))
    assert len(capture.get().splitlines()) == 2 + len(live) + 1, "a line for each, in 80 columns"


def test_a_head_that_nothing_was_tried_beside_is_told_as_such(deeper: FreezeDecision) -> None:
    why, (head, *_) = "the time does not allow for a trial", measured(deeper).rows
    alone = replace(measured(deeper), rows=(head,), chosen_row=0, stopped=why)
    assert alone.sentence == f"validation log loss {head.log_loss:.3f} with the head alone ({why})"


@pytest.mark.parametrize(
    "changes",
    [{"depths": ()}, {"depths": (1.0,)}, {"depths": (float("nan"),)}, {"final_depth": 1.5}, {"trial_images": 0}],
)
def test_what_cannot_be_measured_with_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Measured"):
        Measured(**changes)
