"""Keys name all that activations depend on, and nothing that is drawn by lot."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from graftline.augment.policy import Policy
from graftline.augment.preprocess import Preprocessing
from graftline.execution import Execution
from graftline.features.cut import Cut, cut
from graftline.features.engine import make_engine
from graftline.features.key import trunk_key, view_key

PREPROCESSING = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)


class Untraceable(nn.Module):
    """A network of timm's interface whose code decides by what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3 * 32 * 32, 4), nn.ModuleDict({"fc": nn.Linear(4, 3)})
        self.norm = nn.BatchNorm1d(4)

    def get_classifier(self) -> nn.Module:
        return self.head["fc"]

    def forward_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.norm(self.stem(images.flatten(1)))
        return -features if features.sum() > 0 else features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features if pre_logits else self.head["fc"](features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def pretrained(kind: str, head_seed: int) -> Cut:
    """Return a network with the same weights each time, but for its head, cut below that."""
    torch.manual_seed(0)
    network: Any = Untraceable() if kind == "untraceable" else timm.create_model(kind, num_classes=3)
    torch.manual_seed(head_seed)
    network.get_classifier().reset_parameters()
    head = {id(parameter) for parameter in network.get_classifier().parameters()}
    trainable = {name for name, parameter in network.named_parameters() if id(parameter) in head}
    return cut(network, trainable, (32, 32))


@pytest.mark.parametrize("kind", ["untraceable", "test_efficientnet"])
def test_another_random_head_is_the_same_trunk(kind: str, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    keys, exports = [], []
    for seed in (1, 2):
        parts = pretrained(kind, seed)
        assert (parts.note != "") == (kind == "untraceable")
        keys.append(trunk_key(parts, PREPROCESSING, kind, {}, "head"))
        file = tmp_path / f"{seed}" / "trunk.onnx"
        make_engine(parts.trunk, file, images, Execution())
        exports.append(file.read_bytes())
    assert keys[0] == keys[1]
    assert exports[0] == exports[1]


def test_a_trunk_without_a_head_shares_what_is_frozen() -> None:
    torch.manual_seed(0)
    network = Untraceable()
    parts = cut(network, {"head.fc.weight", "head.fc.bias"}, (32, 32))
    own = {name: id(tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
    trunk = {name: id(tensor) for name, tensor in parts.trunk.state_dict(keep_vars=True).items()}
    assert {f"network.{name}": tensor for name, tensor in own.items() if not name.startswith("head.")} == trunk


def test_other_weights_and_other_preprocessing_are_other_keys() -> None:
    parts = pretrained("test_efficientnet", 1)
    before = trunk_key(parts, PREPROCESSING, "test_efficientnet", {}, "head")
    assert trunk_key(parts, Preprocessing((32, 32), (0.4,) * 3, (0.5,) * 3), "test_efficientnet", {}, "head") != before
    with torch.no_grad():
        next(parts.trunk.parameters()).mul_(2)
    assert trunk_key(parts, PREPROCESSING, "test_efficientnet", {}, "head") != before


def test_each_view_and_seed_has_a_key_of_its_own() -> None:
    policy = Policy("none", None, {})
    keys = [view_key(policy, seed, view) for seed in range(2) for view in range(2)]
    assert all(first != second for number, first in enumerate(keys) for second in keys[:number])
