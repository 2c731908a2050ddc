"""Tables show all digits, in a terminal of the usual width too."""

import pytest
import timm
import torch

from graftline.backbones.cost import NetworkCost, count
from graftline.console import console
from graftline.report.cost_tables import print_comparison, print_stages

COLUMNS = 80  # of a terminal, and of what is no terminal


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", COLUMNS)


def priced(name: str, size: int) -> NetworkCost:
    with torch.device("meta"):
        network = timm.create_model(name)
    return NetworkCost(name, count(network, (size, size), 3, name))


@pytest.mark.parametrize(("name", "size"), [("efficientnet_b0", 224), ("vgg16", 224), ("test_vit", 160)])
def test_no_number_of_a_stage_is_cut_short(name: str, size: int) -> None:
    network = priced(name, size)
    with console.capture() as captured:
        print_stages(network, batch_size=8)
    words = set(captured.get().split())
    for stage in (*network.cost.stages, network.cost):
        assert {f"{stage.parameters:,}", f"{stage.macs:,}", f"{8 * stage.activation_bytes / 1e6:,.1f}"} <= words
    assert max(map(len, captured.get().splitlines())) <= COLUMNS


def test_no_number_of_a_comparison_is_cut_short() -> None:
    networks = [priced("efficientnet_b0", 224), priced("vgg16", 224), priced("vit_tiny_patch16_224", 224)]
    with console.capture() as captured:
        print_comparison(networks, batch_size=8)
    words = set(captured.get().split())
    assert {f"{network.cost.parameters:,}" for network in networks} <= words
    assert {f"{8 * network.cost.activation_bytes / 1e6:,.1f}" for network in networks} <= words
    assert "…" not in captured.get()
    assert max(map(len, captured.get().splitlines())) <= COLUMNS
