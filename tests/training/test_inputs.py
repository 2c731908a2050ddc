"""Images or cached activations: what is decided, and that both train the same."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch

from graftline.augment.policy import Policy
from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Graft
from graftline.backbones.weights import Weights
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.features.cache import Features
from graftline.features.cut import cut
from graftline.freezing.rules import AllButHead, FirstStages, Nothing, Rule, Situation
from graftline.training.fit import Fit, fit
from graftline.training.forecast import Work, forecast
from graftline.training.inputs import Inputs, choose_inputs
from graftline.training.module import GraftModule
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant

NO_POLICY = Policy("none", None, {})


@pytest.fixture(scope="module")
def version(colour_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    split = Split(train=0.6, validation=0.2, test=0.2, seed=0, existing=True)
    ingest = Ingest(None, str(colour_folder), Folder(), split, directory=str(tmp_path_factory.mktemp("data")))
    return ingest.run().version


def graft() -> Graft:
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=3)
    return Graft(network, Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), Weights("file", "here", "0" * 64))


def choose(grafted: Graft, rule: Rule, version: DatasetVersion, tmp_path: Path, **changes: Any) -> Inputs:
    plan = rule.plan(grafted.network, Situation(12, 3, pretrained=True))
    plan.apply(grafted.network)
    features = changes.pop("features", Features(directory=str(tmp_path)))
    recipe = Recipe(batch_size=10, workers=0, **changes)
    return choose_inputs(grafted, plan, version, NO_POLICY, features, recipe, seed=0, memo=tmp_path / "memo.json")


def _nobody(metrics: dict[str, float], step: int) -> None:
    pass


def train(inputs: Inputs, directory: Path) -> Fit:
    module = GraftModule(
        inputs.network,
        optimiser=functools.partial(torch.optim.AdamW, lr=0.01),
        schedule=constant,
        weight_decay=0.0,
    )
    trainer = functools.partial(pl.Trainer, accelerator="cpu", max_epochs=3)
    return fit(
        module,
        trainer,
        inputs.make_loaders,
        directory=directory,
        on_epoch=_nobody,
        show_progress=False,
    )


def test_cached_and_live_training_agree(version: DatasetVersion, tmp_path: Path) -> None:
    cached = choose(graft(), AllButHead(), version, tmp_path)
    live = choose(graft(), AllButHead(), version, tmp_path, features=Features(cache=False))
    assert "cached activations" in cached.sentence
    assert "features=live" in live.sentence
    losses = [
        [(epoch["train/loss"], epoch["val/loss"]) for epoch in train(inputs, tmp_path / name).history]
        for name, inputs in (("cached", cached), ("live", live))
    ]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)


def test_training_the_tail_trains_the_network(version: DatasetVersion, tmp_path: Path) -> None:
    grafted = graft()
    network: Any = grafted.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    train(choose(grafted, AllButHead(), version, tmp_path), tmp_path / "fit")
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(before[name], tensor)}
    assert moved == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("rule", "changes", "reason"),
    [
        (Nothing(), {}, "no layer comes before the first that is trained"),
        (AllButHead(), {"mixup_alpha": 0.2}, "mixup"),
        (AllButHead(), {"features": Features(cache=False)}, "features=live"),
        (FirstStages(number=1), {"features": Features(max_gb=1e-6)}, "features.max_gb"),
    ],
)
def test_why_the_network_runs_live_is_said(
    rule: Rule, changes: dict[str, Any], reason: str, version: DatasetVersion, tmp_path: Path
) -> None:
    inputs = choose(graft(), rule, version, tmp_path, **changes)
    assert reason in inputs.sentence
    assert "whole network runs" in inputs.sentence
    assert not list(tmp_path.iterdir())


def test_the_predicted_time_decides_and_is_said(version: DatasetVersion, tmp_path: Path) -> None:
    auto = Features(cache="auto", directory=str(tmp_path / "cache"))
    chosen = choose(graft(), AllButHead(), version, tmp_path, features=auto)
    memo = tmp_path / "memo.json"
    predicted = json.loads(memo.read_text())
    assert f"{predicted['live']:,.0f} s live" in chosen.sentence
    for cached, live, words in ((1.0, 2.0, "Trained on cached"), (2.0, 1.0, "The whole network runs")):
        memo.write_text(json.dumps({"cached": cached, "live": live}))  # what another process predicted holds
        assert words in choose(graft(), AllButHead(), version, tmp_path, features=auto).sentence


def test_predicting_leaves_network_and_random_numbers_alone(version: DatasetVersion, tmp_path: Path) -> None:
    grafted = graft()
    plan = FirstStages(number=2).plan(grafted.network, Situation(12, 3, pretrained=True))
    plan.apply(grafted.network)
    parts = cut(grafted.network, plan.trainable, (32, 32))
    state = {name: tensor.clone() for name, tensor in grafted.network.state_dict().items()}
    modes = [module.training for module in grafted.network.modules()]
    random = torch.random.get_rng_state()
    predicted = forecast(parts, Work(100, 10, 2, 1, 1e6, in_memory=True), (32, 32), 3)
    assert 0 < predicted.cached < 60
    assert 0 < predicted.live < 60
    assert all(tensor.equal(state[name]) for name, tensor in grafted.network.state_dict().items())
    assert [module.training for module in grafted.network.modules()] == modes
    assert torch.random.get_rng_state().equal(random)
    assert all(parameter.grad is None for parameter in grafted.network.parameters())


def test_other_weights_below_the_boundary_are_other_activations(version: DatasetVersion, tmp_path: Path) -> None:
    for scale in (1.0, 1.0, 2.0):
        grafted = graft()
        with torch.no_grad():
            next(grafted.network.parameters()).mul_(scale)
        choose(grafted, AllButHead(), version, tmp_path)
    assert len(list(tmp_path.glob("*/entry.json"))) == 2 * 2, "training and validation images, two networks"
