"""What the notes say of deep networks, true of timm's: a residual block can be the identity, and how big they are."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

# network → the last normalization of its blocks
NETWORKS = {"resnet18": "bn2", "resnet50": "bn3"}
# He et al. 2015, arXiv 1512.03385; Simonyan and Zisserman 2015, arXiv 1409.1556
PARAMETERS = {"vgg16": 138_357_544, "vgg19": 143_667_240, "resnet50": 25_557_032}


@pytest.fixture(scope="module", params=NETWORKS)
def stage(request: pytest.FixtureRequest) -> Any:
    """The second stage of a network, with the last normalization of each block at zero."""
    torch.manual_seed(0)
    network = timm.create_model(request.param, num_classes=2)
    for block in network.layer2:
        last = getattr(block, NETWORKS[request.param])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return network.layer2


def non_negative(channels: int) -> Tensor:
    """Return maps as a ReLU leaves them, (2, C, 8, 8), some of them zero."""
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1)).relu()


def channels_into(block: Any) -> int:
    return int(block.conv1.in_channels)


@pytest.mark.parametrize("training", [True, False])
def test_a_block_whose_last_weights_are_zero_is_the_identity(stage: Any, training: bool) -> None:
    _, *blocks = stage.train(training)
    assert len(blocks) == (3 if len(stage) == 4 else 1)
    for block in blocks:
        maps = non_negative(channels_into(block))
        assert block.downsample is None
        assert torch.equal(block(maps), maps)


def test_it_is_the_identity_for_the_sake_of_those_weights_only(stage: Any) -> None:
    block = stage[1]
    last = getattr(block, "bn3", block.bn2)
    maps = non_negative(channels_into(block))
    nn.init.ones_(last.weight)
    try:
        assert not torch.equal(block(maps), maps)
    finally:
        nn.init.zeros_(last.weight)


@pytest.mark.parametrize("training", [True, False])
def test_where_sizes_differ_the_shortcut_is_a_projection(stage: Any, training: bool) -> None:
    block = stage.train(training)[0]
    maps = non_negative(channels_into(block))
    out = block(maps)
    channels = {64: 128, 256: 512}[channels_into(block)]
    assert out.shape == (2, channels, 4, 4), "twice the channels, half the height and width"
    projection, normalization = block.downsample
    assert (projection.kernel_size, projection.stride, projection.bias) == ((1, 1), (2, 2), None)
    # a 1x1 convolution of stride 2 is a matrix on the channels of every second pixel
    projected = torch.einsum("oc,bchw->bohw", projection.weight[:, :, 0, 0], maps[:, :, ::2, ::2])
    torch.testing.assert_close(out, normalization(projected).relu())


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
