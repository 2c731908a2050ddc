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
from graftline.training.fitting import TrainingSetup
from graftline.training.measured import Measured, per_image
from graftline.training.measurement import DepthMeasurement, Difference, print_measurement
from torch.nn import functional

from graftline.augment.draw import Draw
from graftline.augment.policy import EvalTransform, Policy
from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Graft
from graftline.backbones.weights import Weights
from graftline.console import console
from graftline.data.decode import decode_rgb
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.features.cache import Features
from graftline.freezing.plan import plan_from_depth
from graftline.freezing.rules import FreezeContext
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant

PREPROCESSING = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
SITUATION = FreezeContext(12, 3, pretrained=True)
RULE = Measured(epochs=4, head_learning_rate=0.03, stage_learning_rate=0.03, whole_learning_rate=0.003)


@pytest.fixture(scope="module")
def version(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    split = Split(train=0.5, validation=0.4, test=0.1, seed=0, existing=True)
    ingest = Ingest(None, str(color_folder), Folder(), split, directory=str(tmp_path_factory.mktemp("data")))
    return ingest.run().version


@pytest.fixture(scope="module")
def fitting(version: DatasetVersion) -> TrainingSetup:
    return TrainingSetup(
        version,
        Policy("none", None, {}),
        Features(cache=False),  # a trunk's export takes longer than the rest
        Recipe(batch_size=10, workers=0),
        functools.partial(torch.optim.AdamW, lr=None),  # type: ignore[arg-type]  # as the plan recommends
        constant,
        functools.partial(pl.Trainer, accelerator="cpu"),
        seed=0,
    )


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
def deeper(fitting: TrainingSetup, tmp_path_factory: pytest.TempPathFactory) -> DepthMeasurement:
    """What was measured where the head alone can learn nothing."""
    return RULE.measure(blinded(), SITUATION, fitting, tmp_path_factory.mktemp("deeper"))


def test_it_goes_deeper_where_that_pays(deeper: DepthMeasurement) -> None:
    head, norm, *others = deeper.rows
    assert [row.boundary for row in deeper.rows] == ["head", "head.norm", "stages.3", "stages.2"]
    assert [row.frozen_groups for row in deeper.rows] == [6, 5, 4, 3]
    assert head.log_loss > np.log(3) - 1e-3  # it knows nothing of the images
    assert deeper.chosen is norm
    assert head.more_log_loss.low > 0  # the paired interval excludes 0
    assert all(other.more_log_loss.high > 0 for other in others)
    assert deeper.stopped == "2 in a row did not pay"
    network = blinded().network
    expected = plan_from_depth(network, 5, deeper.plan.reason, epochs=12, learning_rate=0.03)
    assert deeper.plan == expected
    assert deeper.plan.reason == (
        f"measured, validation log loss {norm.log_loss:.3f} with head.norm to the head, "
        f"{head.more_log_loss.text()} with the head alone, {others[0].more_log_loss.text()} with stages.3 to the head, "
        f"{others[1].more_log_loss.text()} with stages.2 to the head: stem to stages.3 (5 of 6 layer groups) frozen"
    )
    assert [row.trained_parameters for row in deeper.rows[:2]] == [195, 195 + 128]


def test_it_stops_where_the_head_is_enough(fitting: TrainingSetup, tmp_path: Path) -> None:
    slow = replace(RULE, stage_learning_rate=1e-6, whole_learning_rate=1e-7)  # the head that comes along learns nothing
    grafted = graft("test_resnet")
    before = {name: tensor.clone() for name, tensor in grafted.network.state_dict().items()}
    measurement = slow.measure(grafted, SITUATION, fitting, tmp_path)
    assert [row.boundary for row in measurement.rows] == ["head", "layer4", "layer3"]
    assert measurement.plan.only_head
    assert (measurement.plan.epochs, measurement.plan.learning_rate) == (30, 0.03)
    assert measurement.chosen.more_log_loss == Difference(0, 0, 0)
    assert not list(tmp_path.iterdir())
    assert_same_weights(grafted, before)


def assert_same_weights(grafted: Graft, before: dict[str, torch.Tensor]) -> None:
    after = grafted.network.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


def test_a_trial_is_the_same_whatever_was_tried_before(fitting: TrainingSetup, tmp_path: Path) -> None:
    grafted = graft()
    before = {name: tensor.clone() for name, tensor in grafted.network.state_dict().items()}
    state = torch.get_rng_state()
    first, second, again = (RULE.try_boundary(grafted, fitting, number, 2, tmp_path) for number in (6, 5, 6))
    assert_same_weights(grafted, before)
    assert torch.equal(torch.get_rng_state(), state)
    other = graft()
    torch.rand(1)  # dropout must not depend on what drew random numbers before
    alone = RULE.try_boundary(other, fitting, 5, 2, tmp_path)
    for trial, repeated in ((first, again), (second, alone)):
        np.testing.assert_array_equal(trial.losses, repeated.losses)
        np.testing.assert_array_equal(trial.hits, repeated.hits)
    assert (first.losses != second.losses).all()


def test_each_images_loss_is_that_of_the_best_epochs_network(
    version: DatasetVersion, fitting: TrainingSetup, tmp_path: Path
) -> None:
    grafted = graft()
    plan = plan_from_depth(grafted.network, 6, "", epochs=3, learning_rate=0.03)
    cached = replace(fitting, features=Features(directory=str(tmp_path / "cache")))
    fitted = cached.run(grafted, plan, tmp_path / "fit", on_epoch=lambda *_: None, show_progress=False)
    assert fitted.inputs.network is not grafted.network  # the tail, on cached activations
    losses, hits = per_image(fitted.inputs, cached)
    samples, transform = version.samples("validation"), EvalTransform(PREPROCESSING)
    images = torch.stack(
        [torch.as_tensor(transform(decode_rgb(path), Draw(0, index))) for index, path in enumerate(samples.paths)]
    )
    with torch.inference_mode():
        logits = grafted.network.eval()(images)
    labels = torch.tensor(samples.labels)
    expected = functional.cross_entropy(logits, labels, reduction="none").numpy()
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    np.testing.assert_array_equal(hits, (logits.argmax(dim=1) == labels).float().numpy())
    assert losses.mean() == pytest.approx(fitted.fit.best["val/loss"], abs=1e-4)


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


def test_a_users_epochs_and_the_time_bound_the_search(fitting: TrainingSetup, tmp_path: Path) -> None:
    hasty = replace(RULE, max_seconds=1e-3)
    measurement = hasty.measure(graft(), replace(SITUATION, epochs=1), fitting, tmp_path)
    assert len(measurement.rows) == 1
    assert measurement.stopped == "the next one would not end within freeze.max_seconds=0.001"
    assert measurement.plan.epochs == 1
    alone = hasty.try_boundary(graft(), fitting, 6, 1, tmp_path)
    assert measurement.rows[0].log_loss == alone.losses.mean()  # after one epoch, not RULE's four


def test_the_input_ends_the_search(fitting: TrainingSetup, tmp_path: Path) -> None:
    patient = replace(RULE, patience=99)
    measurement = patient.measure(graft(), replace(SITUATION, epochs=1), fitting, tmp_path)
    assert [row.frozen_groups for row in measurement.rows] == [6, 5, 4, 3, 2, 1, 0]
    assert measurement.stopped == "nothing is left to unfreeze"


def test_random_weights_are_not_measured(fitting: TrainingSetup, tmp_path: Path) -> None:
    grafted = replace(graft(), weights=Weights("none"))
    measurement = RULE.measure(grafted, replace(SITUATION, pretrained=False), fitting, tmp_path)
    assert measurement.rows == ()
    assert measurement.plan.trainable == {name for name, _ in grafted.network.named_parameters()}
    assert (measurement.plan.epochs, measurement.plan.learning_rate) == (60, 0.001)
    assert "the weights are random" in measurement.plan.reason
    assert DepthMeasurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement


def test_it_comes_back_from_json_and_is_printed(deeper: DepthMeasurement) -> None:
    assert DepthMeasurement.from_json(json.loads(json.dumps(deeper.to_json()))) == deeper
    with console.capture() as capture:
        print_measurement(deeper)
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
    with pytest.raises(UserError, match="freeze"):
        Measured(**changes)
