"""An ensemble of three members, trained once for all tests of ensembles and soups, and bundles beside its members."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn
from workplace import TINY, Workplace

from graftline.bundle.calibration import Calibration
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import change_answers, save_bundle
from graftline.bundle.soup import load_networks
from graftline.pipeline.cli import compose
from graftline.pipeline.ensembles.result import EnsembleResult

MODEL = [*TINY, "trainer.max_epochs=1"]


@pytest.fixture(scope="session")
def ensemble_place(make_workplace: Callable[[str], Workplace]) -> Workplace:
    return make_workplace("ensemble")


@pytest.fixture(scope="session")
def made(ensemble_place: Workplace, color_folder: Path) -> EnsembleResult:
    """Three members of two image sizes, trained and averaged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ensemble_place.root)
        own = ["members=3", "backbone=test_efficientnet", "backbone.image_size=32,48", "crops=mirror", "choose=all"]
        data = ["data=folder", f"data.path={color_folder}"]
        result = compose("ensemble", [*MODEL, *own, *data]).run(ensemble_place.root / "made")
    assert isinstance(result, EnsembleResult)
    return result


@pytest.fixture
def run(
    ensemble_place: Workplace, made: EnsembleResult, color_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., EnsembleResult]:
    """Runs the stage on the images and in the folder of that ensemble."""
    monkeypatch.chdir(ensemble_place.root)

    def compose_and_run(*overrides: str) -> EnsembleResult:
        data = ["data=folder", f"data.path={color_folder}", "evaluation.resamples=100", "tracking.system_metrics=false"]
        result = compose("ensemble", [*data, *overrides]).run()
        assert isinstance(result, EnsembleResult)
        return result

    return compose_and_run


def shifted(source: Path, target: Path, shift: np.ndarray, temperature: float, *, is_reversed: bool = False) -> Path:
    """Write a bundle with other biases of its head and a calibration, maybe with its classes named in reverse."""
    predictor, (network,) = Predictor.from_directory(source), load_networks([source])
    with torch.no_grad():
        cast(nn.Linear, network.get_submodule("classifier")).bias.add_(torch.from_numpy(shift).float())
    save_bundle(
        target,
        network,
        timm_name="test_efficientnet",
        class_names=predictor.class_names[::-1] if is_reversed else predictor.class_names,
        preprocessing=predictor.preprocessing,
        card=predictor.card,
        decoding=predictor.decoding,
    )
    change_answers(target, calibration=Calibration(temperature))
    return target
