"""Network in Network: what 1x1 convolutions do, and that pooling before the last of them changes nothing."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from graftline.backbones.zoo.nin import NIN


def test_shapes_and_parameters_are_those_of_the_authors_network() -> None:
    with torch.device("meta"):
        network = timm.create_model("nin")
        images = torch.empty(2, 3, 224, 224)
    assert sum(parameter.numel() for parameter in network.parameters()) == 7_595_176
    assert network.mlpconv1[0](images).shape == (2, 96, 54, 54)
    shapes = []
    for stage in (network.mlpconv1, network.mlpconv2, network.mlpconv3, network.mlpconv4):
        images = stage(images)
        shapes.append(tuple(images.shape))
    assert shapes == [(2, 96, 27, 27), (2, 256, 13, 13), (2, 384, 6, 6), (2, 1024, 6, 6)]


def test_a_1x1_convolution_sets_the_number_of_channels_and_keeps_the_size() -> None:
    with torch.device("meta"):
        network = NIN()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    ones = [conv for conv in convolutions if conv.kernel_size == (1, 1)]
    assert len(convolutions) == 11
    assert len(ones) == 7
    for conv in ones:
        assert conv(torch.empty(1, conv.in_channels, 5, 9, device="meta")).shape == (1, conv.out_channels, 5, 9)


def test_a_1x1_convolution_is_a_small_network_at_every_position() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 96, 4, 4)
    conv = NIN().mlpconv1[2]
    assert isinstance(conv, nn.Conv2d)
    by_position = F.linear(maps.permute(0, 2, 3, 1), conv.weight[:, :, 0, 0], conv.bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(conv(maps), by_position)


def test_every_convolution_is_followed_by_a_relu() -> None:
    network = NIN()
    for stage in (network.mlpconv1, network.mlpconv2, network.mlpconv3, network.mlpconv4):
        layers = list(stage)
        after = [type(layers[place + 1]) for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
        assert set(after) == {nn.ReLU}


def test_mean_and_classifier_are_the_papers_1x1_convolution_and_mean() -> None:
    torch.manual_seed(0)
    network = NIN(num_classes=7).eval()
    images = torch.randn(2, 3, 128, 128)
    classifier = network.get_classifier()
    assert isinstance(classifier, nn.Linear)
    with torch.no_grad():
        maps = network.forward_features(images)
        assert maps.shape[-2:] == (3, 3)
        per_class = F.conv2d(maps, classifier.weight[:, :, None, None], classifier.bias)  # (B, K, 3, 3)
        torch.testing.assert_close(network(images), per_class.mean((2, 3)))


def test_dropout_stands_before_the_last_block() -> None:
    network = NIN(conv_drop_rate=0.3)
    assert [(name, module.p) for name, module in network.named_modules() if isinstance(module, nn.Dropout)] == [
        ("mlpconv4.0", 0.3),
        ("head.drop", 0.0),
    ]


@pytest.mark.parametrize(("pool", "num_features"), [("avg", 1024), ("max", 1024), ("catavgmax", 2048)])
def test_other_poolings(pool: str, num_features: int) -> None:
    with torch.device("meta"):
        network = NIN(num_classes=7, global_pool=pool)
        images = torch.empty(2, 3, 64, 64)
    assert network.head_hidden_size == num_features
    assert network(images).shape == (2, 7)
    network.reset_classifier(3, "avg")
    assert network.head_hidden_size == 1024
    assert network(images).shape == (2, 3)


def test_the_variance_survives_the_convolutions() -> None:
    torch.manual_seed(0)
    network = NIN().eval()
    with torch.no_grad():
        maps = network.forward_features(torch.randn(4, 3, 128, 128))
    assert 0.1 < maps.square().mean() < 10
