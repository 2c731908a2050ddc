"""AlexNet: the numbers of both papers, and torchvision's weights in the network that they are of."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights

from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Backbone
from graftline.backbones.zoo.alexnet import ONE_WEIRD_TRICK, PAPER, AlexNet
from graftline.errors import UserError


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(scope="module")
def torchvision_alexnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """Torchvision's network with random weights, and a file with them."""
    torch.manual_seed(0)
    network = torchvision.models.alexnet().eval()
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.parametrize(("groups", "expected"), [(1, 62_378_344), (2, 60_965_224)])
def test_parameters_on_one_gpu_and_on_two(groups: int, expected: int) -> None:
    with torch.device("meta"):
        network = timm.create_model("alexnet", groups=groups)
    assert num_parameters(network) == expected
    convs = {name: module.groups for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    assert convs == {"conv1.0": 1, "conv2.0": groups, "conv3.0": 1, "conv4.0": groups, "conv5.0": groups}


def test_another_number_of_gpus_is_refused() -> None:
    for groups in (3, True, 2.0):
        with pytest.raises(UserError, match=rf"groups=1, or 2 .* not {groups}\."):
            timm.create_model("alexnet", groups=groups)


def test_on_two_gpus_the_third_convolution_alone_sees_all_maps() -> None:
    torch.manual_seed(0)
    network = AlexNet(PAPER, groups=2).eval()
    for stage, sees_all in ((network.conv2, False), (network.conv3, True), (network.conv4, False)):
        conv = stage[0]
        assert isinstance(conv, nn.Conv2d)
        maps = torch.randn(1, conv.in_channels, 9, 9)
        changed = maps.clone()
        changed[:, : conv.in_channels // 2] += 1  # what the first GPU holds
        differs = (conv(maps) != conv(changed)).flatten(2).any(2)[0]  # per filter
        first, second = differs.chunk(2)
        assert first.all()
        assert second.all() if sees_all else not second.any()


def test_227_px_give_the_papers_maps() -> None:
    with torch.device("meta"):
        network, images = AlexNet(PAPER), torch.empty(1, 3, 227, 227)
    assert network.conv1[0](images).shape == (1, 96, 55, 55)
    shapes = []
    for stage in (network.conv1, network.conv2, network.conv3, network.conv4, network.conv5):
        images = stage(images)
        shapes.append(tuple(images.shape[1:]))
    assert shapes == [(96, 27, 27), (256, 13, 13), (384, 13, 13), (384, 13, 13), (256, 6, 6)]
    maps = torch.randn(1, 256, 6, 6)
    assert torch.equal(network.resample(maps), maps)  # nothing is resampled
    assert network.conv1[0](torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 96, 54, 54)  # what the text says


def normalized_by_hand(responses: Tensor) -> Tensor:
    """Section 3.3, term by term: b_i = a_i / (2 + 1e-4 · Σ a_j²)^0.75, j from max(0, i - 2) to min(N - 1, i + 2)."""
    result = torch.empty_like(responses)
    last = responses.shape[1] - 1
    for i in range(last + 1):
        total = sum(responses[:, j].square() for j in range(max(0, i - 2), min(last, i + 2) + 1))
        result[:, i] = responses[:, i] / (2 + 1e-4 * total) ** 0.75
    return result


def test_responses_are_normalized_as_in_the_paper() -> None:
    with torch.device("meta"):
        network = AlexNet(PAPER)
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.LocalResponseNorm)]
    assert layers == ["conv1.2", "conv2.2"]  # after the ReLU, before the pooling
    responses = 50 * torch.randn(2, 9, 4, 4, dtype=torch.float64)  # large enough for the sum to count
    torch.testing.assert_close(network.conv1[2](responses), normalized_by_hand(responses))
    torch.testing.assert_close(network.conv2[2](responses), normalized_by_hand(responses))


def test_weights_start_as_in_section_5() -> None:
    torch.manual_seed(0)
    network = AlexNet(PAPER)
    ones = {"conv2.0.bias", "conv4.0.bias", "conv5.0.bias", "fc6.1.bias", "fc7.1.bias"}
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter, torch.full_like(parameter, float(name in ones))), name
        else:
            assert 0.0097 < parameter.std() < 0.0103, name
            assert parameter.mean().abs() < 0.0003, name


def test_levels_reach_the_network_as_in_section_2() -> None:
    preprocessing = Backbone("alexnet", weights="none").preprocessing()
    assert preprocessing.image_size == (227, 227)
    image = torch.randint(0, 256, (227, 227, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    levels = preprocessing.normalize(image).transpose(1, 2, 0)
    torch.testing.assert_close(
        torch.from_numpy(levels.copy()), torch.from_numpy(image) - 255 * torch.tensor([0.485, 0.456, 0.406])
    )


@pytest.mark.parametrize("layout", [PAPER, ONE_WEIRD_TRICK])
def test_both_hidden_layers_have_dropout(layout: object) -> None:
    with torch.device("meta"):
        network = AlexNet(layout)  # type: ignore[arg-type]  # pytest gives objects
    dropouts = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout)}
    assert dropouts == {"fc7.0": 0.5, "head_drop": 0.5}


def test_torchvisions_weights_give_its_outputs(torchvision_alexnet: tuple[nn.Module, Path]) -> None:
    theirs, path = torchvision_alexnet
    graft = Backbone("alexnet_owt", file=str(path)).build(1000)
    ours = graft.network.eval()
    assert num_parameters(ours) == num_parameters(theirs) == 61_100_840
    for size in (224, 63, 100):  # the weights' own, the smallest, one between
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(ours(images), theirs(images))


def test_torchvisions_weights_get_a_new_head(torchvision_alexnet: tuple[nn.Module, Path]) -> None:
    theirs, path = torchvision_alexnet
    ours = Backbone("alexnet_owt", file=str(path)).build(3).network
    assert ours.get_parameter("fc8.weight").shape == (3, 4096)
    assert torch.equal(ours.get_parameter("conv5.0.weight"), theirs.get_parameter("features.10.weight"))
    assert torch.equal(ours.get_parameter("fc7.1.weight"), theirs.get_parameter("classifier.4.weight"))


def test_torchvisions_weights_are_not_of_the_paper(torchvision_alexnet: tuple[nn.Module, Path]) -> None:
    _, path = torchvision_alexnet
    with pytest.raises(UserError, match=r"another architecture .* no local response normalization.*alexnet_owt"):
        Backbone("alexnet", weights="file", file=str(path)).build(3)


def test_the_published_weights_are_torchvisions() -> None:
    published, config = AlexNet_Weights.IMAGENET1K_V1, get_pretrained_cfg("alexnet_owt")
    assert (config.tag, config.url) == ("tv_in1k", published.url)
    transform = published.transforms()
    assert Backbone("alexnet_owt", weights="none").preprocessing() == Preprocessing(
        image_size=(transform.crop_size[0],) * 2,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
        crop_pct=transform.crop_size[0] / transform.resize_size[0],
    )


def test_what_differs_between_images_survives_for_raw_levels_only() -> None:
    torch.manual_seed(0)
    network, noise = AlexNet(PAPER).eval(), torch.randn(4, 3, 67, 67)

    def spread(images: Tensor) -> Tensor:
        with torch.no_grad():
            features = network.forward_head(network.forward_features(images), pre_logits=True)  # (B, F)
        return features.std(0).mean() / features.mean()

    # From unit variance the biases of 1 would be nearly all that the classifier sees: hence std = 1/255.
    assert spread(60 * noise) > 10 * spread(noise)
