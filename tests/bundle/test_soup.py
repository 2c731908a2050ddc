"""Soups: the mean of weights, with statistics that are those of the images."""

import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from graftline.bundle.layout import WEIGHTS_FILE
from graftline.bundle.soup import average_weights, check_soup, load_networks
from graftline.errors import UserError


@pytest.fixture
def networks() -> list[nn.Module]:
    """Three networks of one architecture, whose BatchNorm has seen different images."""
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        network = timm.create_model("test_efficientnet", num_classes=3)
        with torch.no_grad():
            network.train()(torch.randn(8, 3, 64, 64))
        found.append(network.eval())
    return found


@pytest.fixture
def batches() -> list[Tensor]:
    return list(torch.randn(3, 8, 3, 64, 64, generator=torch.Generator().manual_seed(9)))


def test_weights_are_means_and_statistics_are_those_that_torch_finds(
    networks: list[nn.Module], batches: list[Tensor]
) -> None:
    soup = average_weights(networks, iter(batches))
    states = [network.state_dict() for network in networks]
    expected = timm.create_model("test_efficientnet", num_classes=3, drop_path_rate=0.0)
    expected.load_state_dict(
        {
            key: sum(state[key] for state in states) / 3 if value.is_floating_point() else value
            for key, value in states[0].items()
        }
    )
    update_bn(batches, expected)
    for key, value in soup.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, expected.state_dict()[key], rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in soup.modules())


def test_of_equal_networks_it_is_the_same_network(networks: list[nn.Module], batches: list[Tensor]) -> None:
    soup = average_weights([networks[0]] * 3, iter(()))
    with torch.no_grad():
        torch.testing.assert_close(soup(batches[0]), networks[0](batches[0]), rtol=1e-5, atol=1e-6)


def test_statistics_that_all_share_stay(networks: list[nn.Module], batches: list[Tensor]) -> None:
    """As of heads that were trained on one frozen network."""
    heads = [timm.create_model("test_efficientnet", num_classes=3) for _ in range(2)]
    for head in heads:
        state = networks[0].state_dict()
        head.load_state_dict({**state, "classifier.weight": torch.randn_like(state["classifier.weight"])})
    soup = average_weights([head.eval() for head in heads], iter(batches))
    with torch.no_grad():
        expected = (heads[0](batches[0]) + heads[1](batches[0])) / 2  # logits are linear in the head
        torch.testing.assert_close(soup(batches[0]), expected, rtol=1e-4, atol=1e-5)


def test_networks_of_other_layers_are_refused_before_they_are_loaded(bundle: Path, tmp_path: Path) -> None:
    """As AlexNets with groups of 1 and 2, which have one name."""
    narrow, fewer = (Path(shutil.copytree(bundle, tmp_path / name)) for name in ("narrow", "fewer"))
    weights = load_file(bundle / WEIGHTS_FILE)
    key = next(name for name, value in sorted(weights.items()) if value.ndim == 4)
    save_file({**weights, key: weights[key][:1].clone()}, narrow / WEIGHTS_FILE)
    save_file({name: weights[name] for name in weights if name != key}, fewer / WEIGHTS_FILE)
    check_soup([bundle, bundle])
    for other in (narrow, fewer):
        with pytest.raises(
            UserError, match=rf"{other.name} has other layers than .* \(first: {re.escape(key)}\), as net"
        ):
            check_soup([bundle, other])


def test_only_one_architecture_can_be_averaged(bundle: Path, tmp_path: Path) -> None:
    assert len(load_networks([bundle, bundle])) == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "bundle.json").write_text((bundle / "bundle.json").read_text().replace("test_efficientnet", "resnet18"))
    with pytest.raises(UserError, match=r"other has another timm_name than .*, and a soup averages the weights of one"):
        check_soup([bundle, other])
    with pytest.raises(UserError, match="A soup is of 2 models at least"):
        check_soup([bundle])
