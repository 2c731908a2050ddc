"""A small real bundle."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import change_description
from PIL import Image

from graftline.backbones.backbone import Backbone
from graftline.bundle.save import save_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three classes, for images of 64 px, whose probabilities depend visibly on the image."""
    torch.manual_seed(0)
    graft = Backbone("test_efficientnet", weights="none", image_size=64).build(3)
    with torch.no_grad():
        for key, tensor in graft.network.state_dict().items():
            if key.endswith(("bn1.running_var", "bn2.running_var", "bn3.running_var")):
                tensor.fill_(0.2)
    folder = tmp_path_factory.mktemp("bundles")
    real = [folder / f"photo{number}.PNG" for number in range(3)]
    generator = np.random.default_rng(0)
    for path in real:
        Image.fromarray(generator.integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(path)
    return save_bundle(
        folder / "efficientnet",
        graft.network,
        timm_name="test_efficientnet",
        class_names=["ant", "bee/wasp", "cat"],
        preprocessing=graft.preprocessing,
        card={"dataset_digest": "0123456789abcdef"},
        golden=real,
    )


@pytest.fixture
def old_bundle(bundle: Path, tmp_path: Path) -> Path:
    """The same in format 1: no digests, no embedding, no golden images."""
    old = shutil.copytree(bundle, tmp_path / "old")
    shutil.rmtree(old / "golden")
    change_description(old, format=1, digest=None, files=None, embedding_size=None)
    return old
