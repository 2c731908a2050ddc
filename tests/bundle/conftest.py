"""A small real bundle."""

from pathlib import Path

import pytest
import torch

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
    return save_bundle(
        tmp_path_factory.mktemp("bundles") / "efficientnet",
        graft.network,
        timm_name="test_efficientnet",
        class_names=["ant", "bee/wasp", "cat"],
        preprocessing=graft.preprocessing,
        card={"dataset_digest": "0123456789abcdef"},
    )
