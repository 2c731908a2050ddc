"""BatchNorm's statistics in trainings: frozen ones stay, adapted ones are kept, cached activations are of them."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch.optim.swa_utils import update_bn

from graftline.augment.draw import Draw
from graftline.augment.policy import EvalTransform
from graftline.backbones.weights import Weights
from graftline.data.decode import decode_rgb
from graftline.errors import UserError
from graftline.features.cache import Features
from graftline.features.cut import cut
from graftline.freezing.batchnorm import statistics
from graftline.freezing.depth import head_plan
from graftline.freezing.plan import plan_from_depth
from graftline.training import batchnorm
from graftline.training.activations import activation_key
from graftline.training.batchnorm import prepare_statistics
from graftline.training.fit_directory import FitDirectory
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.setup import TrainingSetup
from graftline.training.trial import Trials

MakeSetup = Callable[..., TrainingSetup]


def copies(setup: TrainingSetup) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in statistics(setup.graft.network).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("frozen_groups", "cache"), [(0, False), (3, True)])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_frozen_statistics_go_through_a_training_as_they_are(
    frozen_groups: int, cache: bool, ema_decay: float | None, make_setup: MakeSetup, tmp_path: Path
) -> None:
    moved = {}
    for choice in ("frozen", "trained"):
        setup = make_setup(
            batchnorm=choice,
            features=Features(cache=cache, directory=str(tmp_path / "cache")),
            recipe=Recipe(batch_size=12, workers=0, ema_decay=ema_decay),
        )
        network = setup.graft.network
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        plan = plan_from_depth(network, frozen_groups, "", epochs=2)
        fit_phase(setup, plan, FitDirectory(tmp_path / choice), show_progress=False)
        after = network.state_dict()
        moved[choice] = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    expected = moved["trained"] - statistics(make_setup().graft.network).keys()
    assert moved["frozen"] == expected, "all that is trained but the statistics"
    assert "blocks.4.0.bn1.bias" in moved["frozen"]
    assert "blocks.4.0.bn1.running_mean" in moved["trained"]


def test_adapted_statistics_are_those_of_the_training_images(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = make_setup(batchnorm="adapted")
    samples, transform = setup.version.samples("train"), EvalTransform(setup.graft.preprocessing)
    images = np.stack([transform(decode_rgb(path, samples.decoding), Draw(0, 0)) for path in samples.paths])
    by_content = torch.from_numpy(images[np.argsort(samples.sha256)])  # (36, C, H, W), fewer than a batch
    by_torch = make_setup().graft.network
    update_bn([by_content], by_torch)
    prepare_statistics(setup, FitDirectory(tmp_path))
    found = copies(setup)
    for name, expected in statistics(by_torch).items():
        torch.testing.assert_close(found[name], expected, msg=name)


def test_a_head_is_trained_on_activations_by_adapted_statistics(make_setup: MakeSetup, tmp_path: Path) -> None:
    keys, decided = {}, {}
    for choice in ("trained", "adapted", "frozen"):
        setup, directory = make_setup(batchnorm=choice), FitDirectory(tmp_path / choice)
        prepare_statistics(setup, directory)
        begun, network = copies(setup), setup.graft.network
        plan = head_plan(network, epochs=2)
        result = fit_phase(setup, plan, directory, show_progress=False)
        assert "Trained on cached activations" in result.source
        assert equal(copies(setup), begun), "frozen layers keep what they were adapted to"
        keys[choice] = activation_key(setup, plan, cut(network, plan.trainable, (32, 32)))["weights"]
        decided[choice] = result.history.best["val/loss"]
    assert keys["trained"] == keys["frozen"] != keys["adapted"]
    assert decided["trained"] == decided["frozen"] != decided["adapted"]


def test_a_resume_and_a_further_process_have_the_same_bits(
    make_setup: MakeSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_setup(batchnorm="adapted")
    begun = copies(first)
    prepare_statistics(first, FitDirectory(tmp_path))
    assert not equal(copies(first), begun)
    second = make_setup(batchnorm="adapted")
    monkeypatch.setattr(batchnorm, "ADAPTED_IMAGES", 5)  # computed anew, they would be others
    prepare_statistics(second, FitDirectory(tmp_path))
    assert equal(copies(first), copies(second))
    prepare_statistics(second, FitDirectory(tmp_path / "another run"))
    assert not equal(copies(first), copies(second))


def test_a_trial_leaves_adapted_statistics_and_has_the_same_choice(make_setup: MakeSetup, tmp_path: Path) -> None:
    losses = {}
    for choice in ("trained", "adapted", "frozen"):
        setup = make_setup(batchnorm=choice)
        prepare_statistics(setup, FitDirectory(tmp_path / choice))
        begun = copies(setup)
        plan = plan_from_depth(setup.graft.network, 4, "tried", epochs=1)
        trial = Trials(setup, FitDirectory(tmp_path / choice))(plan)
        assert equal(copies(setup), begun)
        losses[choice] = trial.losses.mean()
    assert len(set(losses.values())) == 3


def test_what_changes_nothing_is_said_and_what_cannot_be_is_refused(
    make_setup: MakeSetup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = FitDirectory(tmp_path)
    plain = make_setup(batchnorm="frozen")
    without = replace(plain, graft=replace(plain.graft, network=timm.create_model("test_vit")))
    with caplog.at_level(logging.WARNING, "graftline"):
        prepare_statistics(without, directory)
    assert "no BatchNorm with statistics: FreezeRule.batchnorm='frozen' changes nothing." in caplog.text
    random = replace(plain, graft=replace(plain.graft, weights=Weights("none")))
    with pytest.raises(UserError, match="its BatchNorm knows no statistics to freeze"):
        prepare_statistics(random, directory)
    alone = plain.version.divided({plain.version.samples("train").sha256[0]: "train"})
    one = replace(plain, batchnorm="adapted", version=alone)
    with pytest.raises(UserError, match="One training image has no statistics to adapt to"):
        prepare_statistics(one, directory)
    assert not directory.statistics.exists()
