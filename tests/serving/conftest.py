"""Bundles of a tiny network, for all that serves."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from http_server import CLASS_NAMES

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.layout import bundle_digest
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import save_bundle
from graftline.files import write_json


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=3)
    half = (0.5, 0.5, 0.5)
    return save_bundle(
        tmp_path_factory.mktemp("bundle") / "bundle",
        network,
        timm_name="test_efficientnet",
        class_names=CLASS_NAMES,
        preprocessing=Preprocessing(image_size=(64, 64), mean=half, std=half),
        card={},
    )


@pytest.fixture(scope="session")
def predictor(bundle: Path) -> Predictor:
    return Predictor.from_directory(bundle)


@pytest.fixture(scope="session")
def calibrated(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with a temperature of its own, so that it answers other probabilities."""
    path = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("calibrated") / "bundle"))
    content = json.loads((path / "bundle.json").read_text())
    content["calibration"] = {"temperature": 0.1}
    content["digest"] = bundle_digest(content, content["files"])
    write_json(path / "bundle.json", content)
    return path
