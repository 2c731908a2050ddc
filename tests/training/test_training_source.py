"""Images or cached activations: what is decided, and that both train the same."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch

from graftline.augment.draw import Draw
from graftline.augment.policy import EvalTransform, Policy
from graftline.data.decode import decode_rgb
from graftline.errors import UserError
from graftline.features.cache import Features
from graftline.features.cut import cut
from graftline.features.trace import mode_kept
from graftline.freezing.plan import FreezePlan
from graftline.freezing.rule import FreezeContext, FreezeRule
from graftline.freezing.rules import AllButHead, FirstStages, Nothing
from graftline.training.activations import activation_requests
from graftline.training.fit_directory import FitDirectory
from graftline.training.forecast import SecondsPerImage
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.setup import TrainingSetup
from graftline.training.source_decision import choose_source, head_is_live
from graftline.training.training_source import CachedSource, LiveSource, TrainingSource

MakeSetup = Callable[..., TrainingSetup]
SLOW_TRUNK = SecondsPerImage(trunk=10.0, engine=1.0, step=0.0, tail=0.0)  # one pass pays, many do not
SLOW_ENGINE = SecondsPerImage(trunk=0.1, engine=100.0, step=0.0, tail=0.0)


def apply(rule: FreezeRule, setup: TrainingSetup) -> FreezePlan:
    (plan,) = rule.decide(FreezeContext(setup.graft.network, 12, pretrained=True)).plans
    plan.apply(setup.graft.network)
    return plan


def choose(setup: TrainingSetup, rule: FreezeRule, decision_file: Path) -> TrainingSource:
    return choose_source(setup, apply(rule, setup), decision_file)


@pytest.fixture
def decision_file(tmp_path: Path) -> Path:
    return tmp_path / "source.json"


def test_cached_and_live_training_agree(make_setup: MakeSetup, tmp_path: Path) -> None:
    losses = []
    for cache, words in ((True, "cached activations"), (False, "Features.cache=False")):
        setup = make_setup(features=Features(cache=cache, directory=str(tmp_path / "cache")))
        plan = replace(apply(AllButHead(), setup), epochs=3)
        result = fit_phase(setup, plan, FitDirectory(tmp_path / str(cache)), show_progress=False)
        assert words in result.source
        losses.append([(epoch["train/loss"], epoch["val/loss"]) for epoch in result.history.epochs])
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)


def test_training_the_tail_trains_the_network(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = make_setup()
    network = setup.graft.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    plan = replace(apply(AllButHead(), setup), epochs=1)
    result = fit_phase(setup, plan, FitDirectory(tmp_path / "fit"), show_progress=False)
    assert "only the head runs" in result.source
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(before[name], tensor)}
    assert moved == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("rule", "changes", "reason"),
    [
        (Nothing(), {}, "no layer comes before the first that is trained"),
        (AllButHead(), {"recipe": Recipe(batch_size=10, mixup_alpha=0.2)}, "mixup"),
        (AllButHead(), {"features": Features(cache=False)}, "Features.cache=False"),
        (FirstStages(number=1), {"features": Features(max_gb=1e-6)}, "Features.max_gb"),
    ],
)
def test_why_the_network_runs_live_is_said(
    rule: FreezeRule,
    changes: dict[str, Any],
    reason: str,
    make_setup: MakeSetup,
    decision_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where caches of the default directory lie
    source = choose(make_setup(**changes), rule, decision_file)
    assert isinstance(source, LiveSource)
    assert head_is_live(make_setup(**changes)) == bool(changes)
    assert reason in source.sentence
    assert "whole network runs" in source.sentence


@pytest.mark.parametrize(("seconds", "cached"), [(SLOW_TRUNK, True), (SLOW_ENGINE, False)])
def test_the_faster_way_is_taken_said_and_kept_for_later_runs(
    seconds: SecondsPerImage,
    cached: bool,
    make_setup: MakeSetup,
    decision_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("graftline.training.source_decision.time_parts", lambda *_: seconds)
    auto = Features(cache="auto", directory=str(tmp_path / "cache"))
    source = choose(make_setup(features=auto), AllButHead(), decision_file)
    assert isinstance(source, CachedSource) == cached
    kept = json.loads(decision_file.read_text())
    assert kept["cached"] == cached
    assert kept["why"].startswith("predicted ")
    assert kept["why"] in source.sentence
    other = SLOW_ENGINE if cached else SLOW_TRUNK  # another run, while the machine is busy
    monkeypatch.setattr("graftline.training.source_decision.time_parts", lambda *_: other)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    again = choose(make_setup(features=auto, seed=1), AllButHead(), tmp_path / "again.json")
    assert isinstance(again, CachedSource) == cached
    assert "as an earlier training with these images and settings" in again.sentence
    others = choose(make_setup(features=replace(auto, precision="float32")), AllButHead(), tmp_path / "others.json")
    assert isinstance(others, CachedSource) != cached
    monkeypatch.setattr("graftline.training.source_decision.FORMAT", 0)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    anew = choose(make_setup(features=auto, seed=2), AllButHead(), tmp_path / "anew.json")
    assert isinstance(anew, CachedSource) != cached, "what was kept with another meaning is not read"


def test_images_are_trained_on_where_the_forecast_does_not_fit_the_gpu(
    make_setup: MakeSetup, decision_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = list[int]()

    def run_out(*args: Any) -> SecondsPerImage:
        timed.append(args[-1])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("graftline.training.source_decision.time_parts", run_out)
    auto = Features(cache="auto", directory=str(tmp_path / "cache"))
    recipe = Recipe(batch_size=5, workers=0)
    source = choose(make_setup(features=auto, recipe=recipe), AllButHead(), decision_file)
    assert isinstance(source, LiveSource)
    assert "the forecast takes more memory than the GPU has" in source.sentence
    assert timed == [5], "as many images as a step has"


def test_what_there_was_no_room_for_is_not_kept(
    make_setup: MakeSetup, decision_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftline.training.source_decision.time_parts", lambda *_: SLOW_TRUNK)
    auto = Features(cache="auto", directory=str(tmp_path / "cache"))
    source = choose(make_setup(features=replace(auto, max_gb=1e-6)), AllButHead(), decision_file)
    assert isinstance(source, LiveSource)
    assert not [*tmp_path.rglob("sources/*.json")]


@pytest.mark.parametrize("cached", [True, False])
def test_what_was_decided_once_holds(
    cached: bool, make_setup: MakeSetup, decision_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftline.training.source_decision.time_parts", _never)
    decision_file.write_text(json.dumps({"cached": cached, "why": "so it was"}))
    auto = Features(cache="auto", directory=str(tmp_path / "cache"))
    source = choose(make_setup(features=auto), AllButHead(), decision_file)
    assert isinstance(source, CachedSource) == cached
    assert "so it was" in source.sentence


def _never(*_: object) -> SecondsPerImage:
    raise AssertionError("nothing was to be timed")


def test_where_all_activations_are_there_nothing_is_timed(
    make_setup: MakeSetup, decision_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = Features(directory=str(tmp_path / "cache"))
    choose(make_setup(features=features), AllButHead(), tmp_path / "first.json")
    monkeypatch.setattr("graftline.training.source_decision.time_parts", _never)
    auto = replace(features, cache="auto")
    source = choose(make_setup(features=auto), AllButHead(), decision_file)
    assert "Trained on cached activations (computed earlier)" in source.sentence
    with pytest.raises(AssertionError, match="nothing was to be timed"):  # of another boundary nothing is there
        choose(make_setup(features=auto), FirstStages(number=4), tmp_path / "other.json")


def test_what_began_on_cached_activations_does_not_go_on_live(make_setup: MakeSetup, decision_file: Path) -> None:
    decision_file.write_text(json.dumps({"cached": True, "why": ""}))
    full = Features(max_gb=1e-6, directory=str(decision_file.parent))
    with pytest.raises(UserError, match=r"raise Features\.max_gb"):
        choose(make_setup(features=full), FirstStages(number=1), decision_file)


def test_what_the_cache_changes_is_measured_with_the_trained_tail(make_setup: MakeSetup, decision_file: Path) -> None:
    source = choose(make_setup(), FirstStages(number=4), decision_file)
    assert isinstance(source, CachedSource)
    assert source.cache_change() < 1e-3
    array = source.activations[0].array
    assert isinstance(array, np.ndarray)
    array[:] = array + 1  # as if the cache held something else; in memory only
    assert source.cache_change() > 1e-3


@pytest.mark.parametrize("rule", [AllButHead(), FirstStages(number=4)], ids=["head", "tail"])
def test_what_the_classifier_is_given_is_known_with_the_logits(
    rule: FreezeRule, make_setup: MakeSetup, decision_file: Path
) -> None:
    source = choose(make_setup(), rule, decision_file)
    assert isinstance(source, CachedSource)
    inputs, classifier = source.validation_inputs(), source.setup.graft.network.get_classifier()  # type: ignore[operator]
    assert inputs is not None
    with torch.inference_mode():
        logits = classifier(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(logits, source.validation_logits(), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"features": {"precision": "float32"}},
        {"rule": FirstStages(number=5)},
        {"policy": Policy("mirrored", None, {"mirror": A.HorizontalFlip(p=1.0)}), "features": {"views": 1}},
        {"seed": 1, "features": {"views": 1}},
        {"preprocessing": {"mean": (0.4,) * 3}},
        {"scale": 2.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_activations_depend_on_makes_them_others(
    change: dict[str, Any], make_setup: MakeSetup, tmp_path: Path
) -> None:
    """Each change alone leaves nothing of the training images to be taken from the cache."""
    usual: dict[str, Any] = {"features": {"views": change.get("features", {}).get("views", 0)}}
    missing = []
    for changed in (usual, usual, change):
        setup = make_setup(
            seed=changed.get("seed", 0),
            features=Features(directory=str(tmp_path), **changed.get("features", {})),
            **({"policy": changed["policy"]} if "policy" in changed else {}),
        )
        graft = setup.graft
        preprocessing = replace(graft.preprocessing, **changed.get("preprocessing", {}))
        setup = replace(setup, graft=replace(graft, preprocessing=preprocessing))
        with torch.no_grad():
            next(graft.network.parameters()).mul_(changed.get("scale", 1.0))
        plan = apply(changed.get("rule", AllButHead()), setup)
        parts = cut(graft.network, plan.trainable, (32, 32))
        _, *training = activation_requests(setup, plan, parts)
        missing.append(setup.features.missing(training))
        choose_source(setup, plan)
        assert setup.features.missing(training) == 0
    assert missing == [36, 0, 36]


def test_the_logits_of_the_test_images_are_the_trained_network_s(
    make_setup: MakeSetup, decision_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftline.training.training_source.FEW_IMAGES", 11)
    setup = make_setup()
    source = choose(setup, AllButHead(), decision_file)
    with torch.no_grad():
        setup.graft.network.get_parameter("classifier.weight").mul_(3)  # as a training does
    samples = setup.version.samples("test")
    images = EvalTransform(setup.graft.preprocessing)
    batch = np.stack([images(decode_rgb(path), Draw(0, 0)) for path in samples.paths])
    with mode_kept(setup.graft.network), torch.inference_mode():
        expected = setup.graft.network.eval()(torch.from_numpy(batch)).numpy()
    for _ in range(2):  # computed, then read
        logits = source.logits("test")
        assert logits is not None
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    kept = [header for entry in setup.features.store.entries() for header in entry.headers if header.images == 12]
    assert [header.dtype for header in kept].count("float32") == 1


@pytest.mark.parametrize("case", ["more than a head", "few images", "no room", "nothing is cached"])
def test_where_the_network_is_to_run_on_the_test_images(
    case: str, make_setup: MakeSetup, decision_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case != "few images":
        monkeypatch.setattr("graftline.training.training_source.FEW_IMAGES", 11)
    setup = make_setup()
    source = choose(setup, FirstStages(number=1) if case == "more than a head" else AllButHead(), decision_file)
    if case == "no room":
        assert isinstance(source, CachedSource)
        features = replace(setup.features, max_gb=1e-9, directory=str(tmp_path / "small"))
        source = replace(source, setup=replace(setup, features=features))
    if case == "nothing is cached":
        source = LiveSource(setup, "so it is wanted")
    assert source.logits("test") is None
