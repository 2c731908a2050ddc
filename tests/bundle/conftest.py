"""Small real bundles."""

import copy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Backbone
from graftline.bundle.save import save_bundle

CLASS_NAMES = ("ant", "bee/wasp", "cat")
CARD = {"dataset_digest": "0123456789abcdef", "freeze_plan": {"boundary": "layer3"}}


class Saved(NamedTuple):
    """A bundle and what it was made of."""

    directory: Path
    network: nn.Module
    preprocessing: Preprocessing
    timm_name: str


def make_network(backbone: Backbone) -> tuple[nn.Module, Preprocessing]:
    """Return a network whose outputs depend visibly on the image: random ones are nearly constant."""
    torch.manual_seed(3)
    graft = backbone.build(len(CLASS_NAMES))
    with torch.no_grad():
        graft.network.get_classifier().weight.mul_(20)  # type: ignore[operator, union-attr]
    return graft.network.eval(), graft.preprocessing


def save(directory: Path, backbone: Backbone) -> Saved:
    network, preprocessing = make_network(backbone)
    original = copy.deepcopy(network)
    save_bundle(
        directory,
        network,
        timm_name=backbone.name,
        class_names=CLASS_NAMES,
        preprocessing=preprocessing,
        card=CARD,
    )
    return Saved(directory, original, preprocessing, backbone.name)


@pytest.fixture(scope="session", params=["resnet", "vit"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A bundle: of a convolutional network, and of one whose image size is part of the network."""
    backbone = {
        "resnet": Backbone("test_resnet.r160_in1k", weights="none", image_size=64, crop_pct=0.8),
        "vit": Backbone("test_vit", weights="none", image_size=96),
    }[request.param]
    return save(tmp_path_factory.mktemp("bundles") / request.param, backbone)
