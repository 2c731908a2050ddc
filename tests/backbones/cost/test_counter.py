"""The counter against hand counts, the papers, and torch's own total."""

from fractions import Fraction

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from graftline.backbones import catalog
from graftline.backbones.cost import Cost, LayerCost, count
from graftline.backbones.cost.counter import KINDS


class Classifier(nn.Module):
    """A body and a head, with what graftline asks of a timm model."""

    def __init__(self, body: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.head = head or nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits


def create(name: str, **options: object) -> nn.Module:
    catalog.check(name)
    with torch.device("meta"):
        network: nn.Module = timm.create_model(name, **options)
    return network


def count_named(name: str, **options: object) -> Cost:
    network = create(name, **options)
    channels, height, width = network.pretrained_cfg["input_size"]  # type: ignore[index]
    return count(network, (height, width), channels, name)


def layers_of(cost: Cost) -> dict[str, LayerCost]:
    return {layer.name: layer for layer in cost.layers}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", 224),
        ("mobilenetv2_100", 160),
        ("vit_tiny_patch16_224", 224),
        ("convnext_tiny", 96),
        ("efficientnet_b0", 224),
        ("swin_tiny_patch4_window7_224", 224),
        ("vgg11", 224),
    ],
)
def test_the_layers_sum_to_torchs_total_and_to_all_parameters(name: str, size: int) -> None:
    network = create(name).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, size, size, device="meta"))
    cost = count(network, (size, size), 3)
    assert 2 * cost.macs == counter.get_total_flops()
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    for key in ("macs", "parameters", "activation_bytes"):
        assert sum(getattr(stage, key) for stage in cost.stages) == getattr(cost, key)
    assert cost.stages[-1].name == "head"
    assert sum(cost.macs_of(kind) for kind in KINDS) == cost.macs


def test_the_inception_example_of_the_notes() -> None:
    direct = count(Classifier(nn.Conv2d(192, 32, 5, padding=2)), (28, 28), 192)
    bottleneck = nn.Sequential(nn.Conv2d(192, 16, 1), nn.Conv2d(16, 32, 5, padding=2))
    assert direct.macs == 120_422_400
    cost = count(Classifier(bottleneck), (28, 28), 192)
    assert [layer.macs for layer in cost.layers] == [2_408_448, 10_035_200]
    assert cost.macs == 12_443_648


def test_the_inception_example_stands_in_googlenets_own_report() -> None:
    macs = [layer.macs for layer in count_named("googlenet").layers]
    first = macs.index(2_408_448)
    assert macs[first + 1] == 10_035_200 or 10_035_200 in macs[first : first + 4]


@settings(deadline=None, max_examples=40)
@given(
    kernel=st.integers(0, 3).map(lambda half: 2 * half + 1),
    channels=st.integers(2, 24),
    filters=st.integers(1, 40),
    size=st.integers(8, 20),
)
def test_depthwise_separable_costs_1_over_filters_plus_1_over_kernel_squared(
    kernel: int, channels: int, filters: int, size: int
) -> None:
    padding = kernel // 2
    usual = nn.Conv2d(channels, filters, kernel, padding=padding)
    depthwise = nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels)
    separable = nn.Sequential(depthwise, nn.Conv2d(channels, filters, 1))
    costs = [count(Classifier(network), (size, size), channels).macs for network in (separable, usual)]
    assert Fraction(*costs) == Fraction(1, filters) + Fraction(1, kernel**2)


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("lenet5", {}, 61_706),
        ("alexnet", {}, 62_378_344),
        ("alexnet", {"groups": 2}, 60_965_224),
        ("vgg16", {}, 138_357_544),
        ("vgg19", {}, 143_667_240),
    ],
)
def test_parameters_of_the_notes_networks(name: str, options: dict[str, int], parameters: int) -> None:
    assert count_named(name, **options).parameters == parameters


def test_mobilenets_shares_are_the_papers() -> None:
    """Howard et al. 2017, arXiv 1704.04861, table 2; its 1.19 % for the first convolution is 1.91 % misprinted.

    The four must sum to 100 %: 94.86 + 3.06 + 1.91 + 0.18 do, with 1.19 they would not.
    """
    cost = count_named("mobilenetv1_100")
    shares = {kind: round(100 * cost.share(kind), 2) for kind in KINDS}
    assert shares == {"conv_1x1": 94.86, "depthwise": 3.06, "conv": 1.91, "fully_connected": 0.18, "matmul": 0}
    assert cost.macs == pytest.approx(569e6, rel=1e-3)


def test_nin_has_1x1_layers_in_its_stages() -> None:
    cost = count_named("nin")
    assert [stage.macs_of("conv_1x1") > 0 for stage in cost.stages[:-1]] == [True] * 4  # of the head see below
    assert 0.2 < cost.share("conv_1x1") < 0.25
    # behind the global pooling, as here, a 1x1 convolution sees the whole map: a fully connected layer
    assert cost.stages[-1].share("fully_connected") == 1
    filters = layers_of(count(Classifier(nn.Conv2d(8, 5, 1)), (4, 4), 8))["body"]
    assert (filters.kind, filters.macs, filters.activation_bytes) == ("conv_1x1", 4 * 4 * 8 * 5, 4 * 4 * 5 * 4)


@pytest.mark.parametrize(
    ("name", "size"), [("mobilenetv2_100", 32), ("mobilenetv3_small_050", 32), ("efficientnet_b0", 40), ("vgg11", 32)]
)
def test_small_images_change_no_layers_kind(name: str, size: int) -> None:
    """Where maps are one pixel large, a 1x1 convolution covers them; fully connected it is behind a pooling only."""
    usual, small = count_named(name), count(create(name), (size, size), 3)
    assert {layer.name: layer.kind for layer in small.layers} == {layer.name: layer.kind for layer in usual.layers}
    assert small.macs < usual.macs


def test_kinds_and_memory_layer_by_layer() -> None:
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 8, 6, 6
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),  # overwrites its input
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # 16, 3, 3
        nn.Conv2d(16, 10, 3),  # covers the whole map
        nn.Flatten(),  # a view
    )
    cost = count(Classifier(body, nn.Linear(10, 4)), (6, 6), 3)
    assert [
        (layer.name, layer.kind, layer.parameters, layer.macs, layer.activation_bytes) for layer in cost.layers
    ] == [
        ("body.0", "conv", 224, 36 * 8 * 27, 36 * 8 * 4),
        ("body.1", None, 16, 0, 36 * 8 * 4),
        ("body.3", "depthwise", 80, 36 * 8 * 9, 36 * 8 * 4),
        ("body.4", "conv_1x1", 144, 36 * 16 * 8, 36 * 16 * 4),
        ("body.5", None, 0, 0, 36 * 16 * 4),
        ("body.6", None, 0, 0, 9 * 16 * 4),
        ("body.7", "fully_connected", 1450, 144 * 10, 10 * 4),
        ("head", "fully_connected", 44, 40, 4 * 4),
    ]
    assert [(stage.name, stage.macs) for stage in cost.stages] == [("body", cost.macs - 40), ("head", 40)]


def test_attention_is_counted_where_it_happens() -> None:
    cost = count_named("vit_tiny_patch16_224")
    tokens, width = 197, 192
    attention = {layer.name: layer.macs for layer in cost.layers if layer.kind == "matmul"}
    assert attention == {f"blocks.{number}.attn": 2 * tokens**2 * width for number in range(12)}


def test_stages_bear_their_modules_names() -> None:
    names = {
        name: [stage.name for stage in count_named(name).stages] for name in ("resnet18", "efficientnet_b0", "vgg11")
    }
    assert names["resnet18"] == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert names["efficientnet_b0"][0] == "stem"
    assert names["efficientnet_b0"][-2:] == ["blocks.6 + conv_head + bn2", "head"]
    assert names["vgg11"][0] == "features.0"
    assert names["vgg11"][-2:] == ["pre_logits", "head"]


def test_what_only_training_uses_is_told_apart() -> None:
    idle = {layer.name.partition(".")[0] for layer in count_named("googlenet").layers if layer.is_idle}
    assert idle == {"side1", "side2"}
    assert not any(layer.is_idle for layer in count_named("vit_tiny_patch16_224").layers)


def test_counting_leaves_the_network_as_it_is() -> None:
    network: nn.Module = timm.create_model("test_efficientnet").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    cost = count(network, (32, 32), 3)
    assert cost.macs > 0
    assert [module.training for module in network.modules()] == modes
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(module._forward_hooks for module in network.modules())
