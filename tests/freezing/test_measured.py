"""The freeze rule ``measured`` on real small fits: when it goes deeper, when it stops, that trials leave no trace."""

import functools
import json
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
from graftline.freezing.measured import Measured
from graftline.freezing.measurement import DepthMeasurement, Difference
from graftline.freezing.plan import plan_from_depth
from graftline.freezing.rule import FreezeContext, FreezeDecision
from graftline.pipeline.train_result import print_measurement
from graftline.training.fit_directory import FitDirectory
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant
from graftline.training.setup import TrainingSetup
from graftline.training.trial import make_freeze_context

PREPROCESSING = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
RULE = Measured(epochs=8, head_learning_rate=0.03, stage_learning_rate=0.03, whole_learning_rate=0.003)


@pytest.fixture(scope="module")
def version(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    split = Split(train=0.5, validation=0.4, test=0.1, seed=0, existing=True)
    ingest = Ingest(None, str(color_folder), Folder(), split, directory=str(tmp_path_factory.mktemp("data")))
    return ingest.run().version


def decide(
    rule: Measured, graft: Graft, version: DatasetVersion, directory: Path, epochs: int | None = None
) -> FreezeDecision:
    """Let the rule decide by real short fits."""
    setup = TrainingSetup(
        graft=graft,
        version=version,
        policy=Policy("none", None, {}),
        features=Features(cache=False),  # a trunk's export takes longer than the rest
        recipe=Recipe(batch_size=10, workers=0),
        optimizer=functools.partial(torch.optim.AdamW, lr=None),  # type: ignore[arg-type]  # as the plan recommends
        schedule=constant,
        make_trainer=functools.partial(pl.Trainer, accelerator="cpu", max_epochs=epochs),
        execution=Execution(),
        seed=0,
    )
    context = make_freeze_context(setup, FitDirectory(directory))
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
    measurement, (plan,) = measured(deeper), deeper.plans
    head, norm, *others = measurement.rows
    assert [row.boundary for row in measurement.rows] == ["head", "head.norm", "stages.3", "stages.2"]
    assert [row.frozen_groups for row in measurement.rows] == [6, 5, 4, 3]
    assert head.log_loss > np.log(3) - 1e-3  # it knows nothing of the images
    assert measurement.chosen is norm
    assert head.more_log_loss.low > 0  # the paired interval excludes 0
    assert all(other.more_log_loss.high > 0 for other in others)
    assert measurement.stopped == "2 in a row did not pay"
    network = blinded().network
    assert plan == plan_from_depth(network, 5, plan.reason, epochs=12, learning_rate=0.03)
    assert plan.reason == (
        f"measured, validation log loss {norm.log_loss:.3f} with head.norm to the head, "
        f"{head.more_log_loss.text()} with the head alone, {others[0].more_log_loss.text()} with stages.3 to the head, "
        f"{others[1].more_log_loss.text()} with stages.2 to the head: stem to stages.3 (5 of 6 layer groups) frozen"
    )
    assert [row.trained_parameters for row in measurement.rows[:2]] == [195, 195 + 128]


def test_it_stops_where_the_head_is_enough(version: DatasetVersion, tmp_path: Path) -> None:
    slow = replace(RULE, stage_learning_rate=1e-6, whole_learning_rate=1e-7)  # the head that comes along learns nothing
    grafted = graft("test_resnet")
    before = {name: tensor.clone() for name, tensor in grafted.network.state_dict().items()}
    decision = decide(slow, grafted, version, tmp_path)
    measurement, (plan,) = measured(decision), decision.plans
    assert [row.boundary for row in measurement.rows] == ["head", "layer4", "layer3"]
    assert plan.only_head
    assert (plan.epochs, plan.learning_rate) == (30, 0.03)
    assert measurement.chosen.more_log_loss == Difference(0, 0, 0)
    assert not list(tmp_path.iterdir())
    after = grafted.network.state_dict()
    assert all(after[name].equal(tensor) for name, tensor in before.items())


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


def test_a_users_epochs_and_the_time_bound_the_search(version: DatasetVersion, tmp_path: Path) -> None:
    hasty = replace(RULE, max_seconds=1e-3)
    decision = decide(hasty, graft(), version, tmp_path, epochs=1)
    measurement, (plan,) = measured(decision), decision.plans
    assert len(measurement.rows) == 1
    assert measurement.stopped == "the next one would not end within the 0.001 s that are allowed"
    assert plan.epochs == decision.epochs == 1
    longer = decide(hasty, graft(), version, tmp_path, epochs=4)
    assert measured(longer).rows[0].log_loss < measurement.rows[0].log_loss  # after four epochs


def test_other_epochs_measure_nothing_again(deeper: FreezeDecision) -> None:
    network = blinded().network
    context = FreezeContext(network, 12, 3, pretrained=True, epochs=7)  # in which nothing can be tried
    changed = RULE.change_epochs(deeper, context)
    assert changed.plans == (replace(deeper.plans[0], epochs=7),)
    assert changed.measurement == deeper.measurement
    assert RULE.change_epochs(changed, replace(context, epochs=None)) == deeper
    with pytest.raises(ValueError, match="try_boundary"):
        RULE.decide(context)


def test_the_input_ends_the_search(version: DatasetVersion, tmp_path: Path) -> None:
    measurement = measured(decide(replace(RULE, patience=99), graft(), version, tmp_path, epochs=1))
    assert [row.frozen_groups for row in measurement.rows] == [6, 5, 4, 3, 2, 1, 0]
    assert measurement.stopped == "nothing is left to unfreeze"


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
    assert [line.split()[0] for line in lines[2:-1]] == ["head", "head.norm", "stages.3", "stages.2"]
    assert [line.split()[0] for line in lines if "chosen  " in line and "against" not in line] == ["head.norm"]
    assert lines[-1] == "No deeper boundary was tried: 2 in a row did not pay."


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"patience": 0},
        {"max_seconds": 0.0},
        {"max_seconds": float("nan")},
        {"whole_learning_rate": -1.0},
    ],
)
def test_what_cannot_be_measured_with_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Measured"):
        Measured(**changes)
