"""The depth that a training with one seed finds is taken by another one."""

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch

from graftline.backbones.backbone import Graft
from graftline.data.version import DatasetVersion
from graftline.features.cache import Features
from graftline.freezing.measured import Measured
from graftline.freezing.measurement import DepthMeasurement
from graftline.freezing.rule import FreezeDecision
from graftline.training.depth_decision import decide_depth, decide_depth_of
from graftline.training.fit_directory import FitDirectory
from graftline.training.known_depth import KnownDepth
from graftline.training.recipe import Recipe
from graftline.training.setup import TrainingSetup
from graftline.training.trial import keep_trials, make_freeze_context

MakeSetup = Callable[..., TrainingSetup]
RULE = Measured(depths=(0.5,))


@pytest.fixture
def set_up(make_setup: MakeSetup, judged_version: DatasetVersion, tmp_path: Path) -> Callable[..., TrainingSetup]:
    """Return what makes the setup of a training with a seed, where the head alone learns nothing unless both do not."""
    torch.manual_seed(0)
    blinded: Any = timm.create_model("test_convnext", num_classes=3)
    torch.nn.init.zeros_(blinded.head.norm.weight)  # until it is trained, it gives the same for every image
    torch.nn.init.ones_(blinded.head.norm.bias)

    def set_up(seed: int, place: str, *, learns: bool) -> TrainingSetup:
        pl.seed_everything(seed, verbose=False)
        rate = 0.01 if learns else 0.0
        setup = make_setup(
            version=judged_version,
            features=Features(cache=False, directory=str(tmp_path / place / "activations")),
            optimizer=functools.partial(torch.optim.AdamW, lr=rate),
            recipe=Recipe(batch_size=9, workers=0, patience=1),
            seed=seed,
        )
        pl.seed_everything(seed, verbose=False)
        return replace(setup, graft=replace(setup.graft, network=with_new_head(blinded)))

    return set_up


def with_new_head(network: Any) -> Any:
    """Return a copy of a network with another head, as chance has it."""
    copied = timm.create_model("test_convnext", num_classes=3)
    copied.load_state_dict(network.state_dict())
    copied.reset_classifier(3)
    return copied


def of_other(setup: TrainingSetup, seed: int, folder: Path) -> FreezeDecision:
    """Return what a training decides as one with another seed does."""

    def build() -> Graft:
        return replace(setup.graft, network=with_new_head(setup.graft.network))

    return decide_depth_of(seed, setup, RULE, FitDirectory(folder), build)


def losses(decision: FreezeDecision) -> list[tuple[str, float, float]]:
    """Return what was measured, but for the seconds that it took."""
    assert isinstance(decision.measurement, DepthMeasurement)
    return [(row.boundary, row.log_loss, row.accuracy) for row in decision.measurement.rows]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the one trial that a directory has."""
    (file,) = directory.rglob("best.ckpt")
    state: dict[str, torch.Tensor] = torch.load(file, weights_only=False)["state_dict"]
    return state


def test_a_head_that_is_enough_is_so_for_the_other_whatever_is_known(
    set_up: Callable[..., TrainingSetup], tmp_path: Path
) -> None:
    first = set_up(0, "known", learns=False)
    own = decide_depth(first, RULE, make_freeze_context(first, FitDirectory(tmp_path / "first")))
    assert own.plans[-1].only_head
    known = of_other(set_up(1, "known", learns=False), 0, tmp_path / "second")
    assert not (tmp_path / "second").exists(), "nothing was tried"

    third = set_up(1, "unknown", learns=False)
    before = {name: tensor.clone() for name, tensor in third.graft.network.state_dict().items()}
    state = torch.get_rng_state()
    tried = of_other(third, 0, tmp_path / "third")
    assert (tmp_path / "third").exists()
    assert torch.equal(torch.get_rng_state(), state)
    assert os.environ["PL_GLOBAL_SEED"] == "1"
    assert all(third.graft.network.state_dict()[name].equal(tensor) for name, tensor in before.items())
    assert losses(known) == losses(tried) == losses(own)
    assert known.plans == tried.plans == own.plans
    assert known.tried == tried.tried == (), "the head is trained with the other's own seed"


def test_a_training_that_goes_deeper_makes_that_trial_with_its_own_seed(
    set_up: Callable[..., TrainingSetup], tmp_path: Path
) -> None:
    first = set_up(0, "known", learns=True)
    own = decide_depth(first, RULE, make_freeze_context(first, FitDirectory(tmp_path / "first")))
    assert len(own.plans) == 2
    assert KnownDepth(first, RULE).read() is None, "its trial goes on: it is made once more"
    known = of_other(set_up(1, "known", learns=True), 0, tmp_path / "second")
    tried = of_other(set_up(1, "unknown", learns=True), 0, tmp_path / "third")
    assert losses(known) == losses(tried) == losses(own)
    assert known.plans == tried.plans == own.plans
    assert known.tried == tried.tried == own.tried
    alone = set_up(1, "alone", learns=True)
    alone_decided = decide_depth(alone, RULE, make_freeze_context(alone, FitDirectory(tmp_path / "alone")))
    assert losses(alone_decided) != losses(own)
    assert alone_decided.plans[0].trainable == own.plans[0].trainable
    for place, decision in (("first", own), ("second", known), ("third", tried), ("alone", alone_decided)):
        keep_trials(decision, FitDirectory(tmp_path / place))
    expected = weights(tmp_path / "alone")
    for place in ("second", "third"):
        found = weights(tmp_path / place)
        assert found.keys() == expected.keys()
        assert all(found[name].equal(tensor) for name, tensor in expected.items()), "as if it had tried by itself"
    assert not all(weights(tmp_path / "first")[name].equal(tensor) for name, tensor in expected.items())


def test_another_network_has_its_own(set_up: Callable[..., TrainingSetup], tmp_path: Path) -> None:
    first = set_up(0, "known", learns=False)
    decide_depth(first, RULE, make_freeze_context(first, FitDirectory(tmp_path / "first")))
    second = set_up(1, "known", learns=False)
    of_other(replace(second, graft=replace(second.graft, drop_rates={"drop_rate": 0.2})), 0, tmp_path / "second")
    assert (tmp_path / "second").exists(), "it was tried"
