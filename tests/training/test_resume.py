"""An interrupted and resumed training is the uninterrupted one, bit for bit, whatever it draws."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations as A
import pytest

from graftline.augment.policy import Policy
from graftline.data.image_memory import ImageMemory
from graftline.features.cache import Features
from graftline.freezing.plan import FreezePlan, plan_from_depth
from graftline.training.batchnorm import prepare_statistics
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit_directory import FitDirectory
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.results import FitHistory
from graftline.training.setup import TrainingSetup

LIVE = Features(cache=False)
WORKERS = Recipe(batch_size=12, workers=2)
MIRRORED = Policy("mirrored", None, {"mirror": A.HorizontalFlip(p=0.5), "rotate": A.Rotate(p=0.5)})


class KilledError(Exception):
    """Stands for whatever interrupts a training."""


class KilledIn(FitEvents):
    """Interrupts a training in an epoch, before its checkpoint is written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, metrics: Metrics, step: int) -> None:  # noqa: ARG002 - the event's signature
        if metrics["epoch"] == self.epoch:
            raise KilledError


@pytest.mark.parametrize(
    ("changes", "frozen_groups"),
    [
        ({"network": {"drop_rate": 0.5, "drop_path_rate": 0.3}, "features": LIVE}, 4),
        ({"network": {"drop_rate": 0.5}}, 6),  # on cached activations
        ({"recipe": Recipe(batch_size=12, workers=0, mixup_alpha=0.4, cutmix_alpha=1.0, ema_decay=0.9)}, 3),
        ({"policy": MIRRORED, "features": LIVE}, 6),
        ({"recipe": WORKERS, "policy": MIRRORED, "features": LIVE, "images": ImageMemory(share=0)}, 6),
    ],
    ids=["dropout", "dropout on activations", "mixup, CutMix and averaging", "images in memory", "worker processes"],
)
def test_a_resumed_training_is_the_uninterrupted_one(
    changes: dict[str, Any], frozen_groups: int, make_setup: Callable[..., TrainingSetup], tmp_path: Path
) -> None:
    def make() -> tuple[TrainingSetup, FreezePlan]:
        setup = make_setup(**changes)
        return setup, plan_from_depth(setup.graft.network, frozen_groups, "", epochs=5, learning_rate=0.01)

    setup, plan = make()
    expected = fit_phase(setup, plan, FitDirectory(tmp_path / "whole"), show_progress=False).history

    directory = FitDirectory(tmp_path / "parts")
    with pytest.raises(KilledError):
        fit_phase(*make(), directory, events=KilledIn(2), show_progress=False)
    resumed, plan = make()
    found = fit_phase(resumed, plan, directory, resume=True, show_progress=False).history
    assert numbers(found) == numbers(expected)
    for name, tensor in resumed.graft.network.state_dict().items():
        assert tensor.equal(setup.graft.network.state_dict()[name]), name
    other = replace(make()[0], seed=1)
    assert numbers(fit_phase(other, plan, FitDirectory(tmp_path / "other"), show_progress=False).history) != numbers(
        expected
    ), "it draws from the seed"


def test_a_resumed_training_has_the_adapted_statistics_of_its_start(
    make_setup: Callable[..., TrainingSetup], tmp_path: Path
) -> None:
    def make(name: str) -> tuple[TrainingSetup, FreezePlan, FitDirectory]:
        setup, directory = make_setup(batchnorm="adapted"), FitDirectory(tmp_path / name)
        prepare_statistics(setup, directory)
        return setup, plan_from_depth(setup.graft.network, 3, "", epochs=4, learning_rate=0.01), directory

    whole, plan, directory = make("whole")
    expected = fit_phase(whole, plan, directory, show_progress=False).history
    with pytest.raises(KilledError):
        fit_phase(*make("parts"), events=KilledIn(2), show_progress=False)
    resumed, plan, directory = make("parts")
    found = fit_phase(resumed, plan, directory, resume=True, show_progress=False).history
    assert numbers(found) == numbers(expected)
    for name, tensor in resumed.graft.network.state_dict().items():
        assert tensor.equal(whole.graft.network.state_dict()[name]), name


def numbers(history: FitHistory) -> list[dict[str, float]]:
    """Return the metrics of each epoch but for its speed."""
    return [{name: value for name, value in epoch.items() if name != "images_per_second"} for epoch in history.epochs]
