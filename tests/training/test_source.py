"""Images or cached activations: what is decided, and that both train the same."""

import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch

from graftline.augment.policy import Policy
from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Graft
from graftline.backbones.weights import Weights
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.features.cache import Features
from graftline.features.cut import cut
from graftline.freezing.rules import AllButHead, FirstStages, FreezeContext, Nothing, Rule
from graftline.training.fit import FitHistory, fit
from graftline.training.forecast import EXPORT_SECONDS, Forecast, Work, forecast
from graftline.training.module import GraftModule
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant
from graftline.training.source import TrainingSource, choose_source

NO_POLICY = Policy("none", None, {})


def graft() -> Graft:
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=3)
    return Graft(network, Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), Weights("file", "here", "0" * 64))


def choose(grafted: Graft, rule: Rule, version: DatasetVersion, tmp_path: Path, **changes: Any) -> TrainingSource:
    plan = rule.plan(grafted.network, FreezeContext(12, 3, pretrained=True))
    plan.apply(grafted.network)
    features = changes.pop("features", Features(directory=str(tmp_path)))
    recipe = Recipe(batch_size=10, workers=0, **changes)
    return choose_source(
        grafted, plan, version, NO_POLICY, features, recipe, seed=0, decision_file=tmp_path / "decision_file.json"
    )


def _nobody(metrics: dict[str, float], step: int) -> None:
    pass


def train(inputs: TrainingSource, directory: Path) -> FitHistory:
    module = GraftModule(
        inputs.network,
        optimizer=functools.partial(torch.optim.AdamW, lr=0.01),
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
        (FirstStages(number=1), {"features": Features(max_gb=1e-6)}, "Features.max_gb"),
    ],
)
def test_why_the_network_runs_live_is_said(
    rule: Rule, changes: dict[str, Any], reason: str, version: DatasetVersion, tmp_path: Path
) -> None:
    inputs = choose(graft(), rule, version, tmp_path, **changes)
    assert reason in inputs.sentence
    assert "whole network runs" in inputs.sentence
    assert {path.name for path in tmp_path.iterdir()} <= {"decision_file.json"}


def test_the_predicted_time_decides_and_is_said(version: DatasetVersion, tmp_path: Path) -> None:
    auto = Features(cache="auto", directory=str(tmp_path / "cache"))
    chosen = choose(graft(), AllButHead(), version, tmp_path, features=auto)
    decision_file = tmp_path / "decision_file.json"
    kept = json.loads(decision_file.read_text())
    assert kept["cached"] == ("Trained on cached" in chosen.sentence)
    assert kept["why"].startswith("predicted ")
    assert kept["why"] in chosen.sentence
    for cached, words in ((True, "Trained on cached"), (False, "The whole network runs")):
        decision_file.write_text(json.dumps({"cached": cached, "why": "so it was"}))  # what was chosen once holds
        sentence = choose(graft(), AllButHead(), version, tmp_path, features=auto).sentence
        assert words in sentence
        assert "so it was" in sentence


@pytest.mark.parametrize(("cached", "live"), [(1.0, 2.0), (2.0, 1.0)])
def test_the_faster_way_is_taken(
    cached: float, live: float, version: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftline.training.source.forecast", lambda *_: Forecast(cached, live))
    auto = Features(cache="auto", directory=str(tmp_path / "cache"))
    sentence = choose(graft(), AllButHead(), version, tmp_path, features=auto).sentence
    assert ("Trained on cached" in sentence) == (cached < live)


def test_a_pass_that_was_made_costs_nothing_more(version: DatasetVersion, tmp_path: Path) -> None:
    auto = Features(cache="auto", directory=str(tmp_path / "cache"))
    seconds = []
    for features in (auto, replace(auto, cache=True), auto):
        (tmp_path / "decision_file.json").unlink(missing_ok=True)
        sentence = choose(graft(), AllButHead(), version, tmp_path, features=features).sentence
        if features is auto:
            seconds.append(int(re.findall(r"predicted (\d+) s on cached", sentence)[0]))
    before, after = seconds
    assert before >= EXPORT_SECONDS > after


def test_what_began_on_cached_activations_does_not_go_on_live(version: DatasetVersion, tmp_path: Path) -> None:
    (tmp_path / "decision_file.json").write_text(json.dumps({"cached": True, "why": ""}))
    with pytest.raises(UserError, match=r"raise Features\.max_gb"):
        choose(graft(), FirstStages(number=1), version, tmp_path, features=Features(max_gb=1e-6))


def test_what_the_cache_changes_is_measured_with_the_trained_tail(version: DatasetVersion, tmp_path: Path) -> None:
    grafted = graft()
    exact = choose(grafted, FirstStages(number=4), version, tmp_path, features=Features(directory=str(tmp_path / "a")))
    assert exact.change is not None
    assert exact.change() < 1e-3
    array = exact.held[0].array
    assert isinstance(array, np.ndarray)
    array[:] = array + 1  # as if the cache held something else; in memory only
    assert exact.change() > 1e-3


def test_predicting_leaves_network_and_random_numbers_alone(version: DatasetVersion, tmp_path: Path) -> None:
    grafted = graft()
    plan = FirstStages(number=2).plan(grafted.network, FreezeContext(12, 3, pretrained=True))
    plan.apply(grafted.network)
    parts = cut(grafted.network, plan.trainable, (32, 32))
    state = {name: tensor.clone() for name, tensor in grafted.network.state_dict().items()}
    modes = [module.training for module in grafted.network.modules()]
    random = torch.random.get_rng_state()
    predicted = forecast(parts, Work(100, 10, 2, 110, 1e6, in_memory=True), (32, 32), 3)
    assert 0 < predicted.cached < 60
    assert 0 < predicted.live < 60
    assert all(tensor.equal(state[name]) for name, tensor in grafted.network.state_dict().items())
    assert [module.training for module in grafted.network.modules()] == modes
    assert torch.random.get_rng_state().equal(random)
    assert all(parameter.grad is None for parameter in grafted.network.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"features": {"precision": "float32"}},
        {"rule": FirstStages(number=5)},
        {"policy": Policy("mirrored", None, {"mirror": A.HorizontalFlip(p=1.0)}), "features": {"views": 1}},
        {"seed": 1, "features": {"views": 1}},
        {"preprocessing": {"mean": (0.4,) * 3}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_activations_depend_on_makes_them_others(
    change: dict[str, Any], version: DatasetVersion, tmp_path: Path
) -> None:
    """Each change alone leaves nothing of the training images to be taken from the cache."""
    usual: dict[str, Any] = {"features": {"views": change.get("features", {}).get("views", 0)}}
    for changed in (usual, change):
        grafted = graft()
        grafted = replace(grafted, preprocessing=replace(grafted.preprocessing, **changed.get("preprocessing", {})))
        plan = changed.get("rule", AllButHead()).plan(grafted.network, FreezeContext(12, 3, pretrained=True))
        plan.apply(grafted.network)
        choose_source(
            grafted,
            plan,
            version,
            changed.get("policy", NO_POLICY),
            Features(directory=str(tmp_path), **changed.get("features", {})),
            Recipe(batch_size=10, workers=0),
            changed.get("seed", 0),
        )
    views = usual["features"]["views"]
    tables = {file.parent.parent for file in tmp_path.glob("*/*/segment.json")}
    assert len(tables) == (2 + views if "policy" in change or "seed" in change else 2)


def test_other_weights_below_the_boundary_are_other_activations(version: DatasetVersion, tmp_path: Path) -> None:
    for scale in (1.0, 1.0, 2.0):
        grafted = graft()
        with torch.no_grad():
            next(grafted.network.parameters()).mul_(scale)
        choose(grafted, AllButHead(), version, tmp_path)
    assert len(list(tmp_path.glob("*/*/segment.json"))) == 2, "training and validation images together, two networks"
