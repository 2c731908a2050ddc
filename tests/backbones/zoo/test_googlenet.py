"""GoogLeNet: the paper's network number by number, and torchvision's output by output."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.models import get_pretrained_cfg
from torch import Tensor, fx, nn

from graftline.backbones.backbone import Backbone
from graftline.backbones.layers import body_groups, head_parameters
from graftline.errors import UserError

SIZE = 64  # px: what the paper does at 224 px takes a while
# Table 1: input channels, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj, and the column "params" in units of 1024.
TABLE = {
    "3a": (192, 64, 96, 128, 16, 32, 32, 159),
    "3b": (256, 128, 128, 192, 32, 96, 64, 380),
    "4a": (480, 192, 96, 208, 16, 48, 64, 364),
    "4b": (512, 160, 112, 224, 24, 64, 64, 437),
    "4c": (512, 128, 128, 256, 24, 64, 64, 463),
    "4d": (512, 112, 144, 288, 32, 64, 64, 580),
    "4e": (528, 256, 160, 320, 32, 128, 128, 840),
    "5a": (832, 256, 160, 320, 32, 128, 128, 1072),
    "5b": (832, 384, 192, 384, 48, 128, 128, 1388),
}
# Where the column is what the row gives; elsewhere it is off by up to 8 %.
EXACT_ROWS = ("3a", "3b", "4b")


def create(name: str = "googlenet", **arguments: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **arguments)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def without_dropout(network: nn.Module) -> Any:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def test_parameters_are_those_of_table_1() -> None:
    with torch.device("meta"):
        network = create()
    total = (7 * 7 * 3 * 64 + 64) + (64 * 64 + 64) + (3 * 3 * 64 * 192 + 192) + (1024 * 1000 + 1000)
    for block, (inputs, one, reduce3, three, reduce5, five, project, thousands) in TABLE.items():
        weights = inputs * (one + reduce3 + reduce5 + project) + 9 * reduce3 * three + 25 * reduce5 * five
        expected = weights + one + reduce3 + three + reduce5 + five + project
        assert count(getattr(network, f"inception{block}")) == expected, block
        assert weights / 1024 == pytest.approx(thousands, abs=1 if block in EXACT_ROWS else 0.08 * thousands), block
        total += expected
    assert (64 * 64 + 9 * 64 * 192) / 1024 == 112, "the second convolution's row"
    assert 1024 * 1000 / 1024 == 1000, "the linear row"
    sides = [inputs * 128 + 128 + 2048 * 1024 + 1024 + 1024 * 1000 + 1000 for inputs in (512, 528)]
    assert [count(network.side1), count(network.side2)] == sides
    assert total == 6_998_552, "of BVLC's GoogLeNet for Caffe"
    assert count(network) == total + sum(sides) == 13_378_280, "of the same in training"
    with torch.device("meta"):
        assert count(create(aux_heads=False)) == total


def test_maps_have_the_sizes_of_table_1() -> None:
    with torch.device("meta"):
        network = create().eval()
        sizes: dict[str, tuple[int, ...]] = {}
        for name, module in network.named_children():
            module.register_forward_hook(lambda _m, _i, out, name=name: sizes.update({name: tuple(out.shape[1:])}))
        network(torch.empty(1, 3, 224, 224))
    expected: dict[str, tuple[int, ...]] = {
        "conv1": (64, 112, 112),
        "pool1": (64, 56, 56),
        "conv3": (192, 56, 56),
        "pool2": (192, 28, 28),
    }
    expected |= {"inception3a": (256, 28, 28), "inception3b": (480, 28, 28), "pool3": (480, 14, 14)}
    expected |= {f"inception4{letter}": (512, 14, 14) for letter in "abc"}
    expected |= {"inception4d": (528, 14, 14), "inception4e": (832, 14, 14), "pool4": (832, 7, 7)}
    expected |= {"inception5a": (832, 7, 7), "inception5b": (1024, 7, 7), "global_pool": (1024,), "fc": (1000,)}
    assert {name: sizes[name] for name in expected} == expected
    assert "side1" not in sizes


def test_responses_are_normalized_as_krizhevsky_has_it() -> None:
    maps = 100 * torch.rand(2, 64, 3, 3, dtype=torch.float64)
    array, expected = maps.numpy(), np.empty((2, 64, 3, 3))
    for channel in range(64):
        around = array[:, max(0, channel - 2) : channel + 3]
        expected[:, channel] = array[:, channel] / (2 + 1e-4 * (around**2).sum(axis=1)) ** 0.75
    network = create(num_classes=2)
    for norm in (network.norm1, network.norm2):
        np.testing.assert_allclose(norm(maps).numpy(), expected, rtol=1e-12)


def test_a_aux_head_pools_windows_of_5_px_3_apart() -> None:
    pool = create(num_classes=2).side1.pool
    maps = torch.randn(2, 512, 14, 14)
    expected = torch.stack(
        [maps[:, :, 3 * i : 3 * i + 5, 3 * j : 3 * j + 5].mean(dim=(2, 3)) for i in range(4) for j in range(4)], dim=2
    )
    torch.testing.assert_close(pool(maps).flatten(2), expected)
    for size in (1, 2, 4, 7, 20):
        constant = torch.full((1, 512, size, size), 3.0)
        torch.testing.assert_close(pool(constant), torch.full((1, 512, 4, 4), 3.0))


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_branches_speak_in_training_only(name: str) -> None:
    images = torch.randn(2, 3, SIZE, SIZE)
    network = without_dropout(create(name, num_classes=5))
    logits, first, second = network(images)
    assert logits.shape == first.shape == second.shape == (2, 5)
    network.side1.eval()
    outputs = network(images)
    assert len(outputs) == 2
    torch.testing.assert_close(outputs, (logits, second))
    network.side2.eval()
    torch.testing.assert_close(network(images), logits)
    assert isinstance(network.eval()(images), Tensor)
    assert isinstance(create(name, num_classes=5, aux_heads=False)(images), Tensor)


def test_the_input_of_a_branch_is_that_of_the_paper() -> None:
    network = without_dropout(create(num_classes=5))
    seen: dict[str, Tensor] = {}
    for name in ("inception4a", "inception4d"):
        getattr(network, name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    _, first, second = network(torch.randn(2, 3, SIZE, SIZE))
    torch.testing.assert_close(first, network.side1(seen["inception4a"]))
    torch.testing.assert_close(second, network.side2(seen["inception4d"]))


def test_new_classifiers_for_the_branches_too() -> None:
    network = create(num_classes=5)
    assert head_parameters(network) == {"fc.weight", "fc.bias"}
    network.reset_classifier(3)
    assert [logits.shape for logits in network(torch.randn(2, 3, SIZE, SIZE))] == [(2, 3)] * 3
    assert network.num_classes == 3
    network.reset_classifier(0)
    images = torch.randn(2, 3, SIZE, SIZE)
    network.eval()
    features = network.forward_head(network.forward_features(images), pre_logits=True)
    assert features.shape == (2, network.head_hidden_size)
    torch.testing.assert_close(network(images), features)
    network.reset_classifier(7)
    assert network(images).shape == (2, 7)


def test_a_group_is_a_block_with_the_branch_that_hangs_on_it() -> None:
    groups = [{name.partition(".")[0] for name in group} for group in body_groups(create(num_classes=5))]
    blocks = [{f"inception{block}"} for block in TABLE]
    blocks[2].add("side1")
    blocks[5].add("side2")
    assert groups == [{"conv1", "conv2", "conv3"}, *blocks]


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_it_can_be_traced_in_training_mode(name: str) -> None:
    network = without_dropout(create(name, num_classes=5))
    images = torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(fx.symbolic_trace(network)(images), network(images))


def torchvisions(num_classes: int = 1000) -> Any:
    """Return torchvision's network without dropout, each of its tensors random."""
    torch.manual_seed(1)
    network = torchvision.models.GoogLeNet(num_classes, init_weights=False, dropout=0.0, dropout_aux=0.0)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network


@pytest.mark.parametrize("num_classes", [1000, 10])
def test_torchvisions_file_gives_torchvisions_outputs(tmp_path: Path, num_classes: int) -> None:
    theirs = torchvisions(num_classes)
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    ours = without_dropout(Backbone("googlenet_bn", file=str(tmp_path / "googlenet.pth")).build(num_classes).network)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))
        logits, second, first = theirs.train()(images)
        torch.testing.assert_close(ours.train()(images), (logits, first, second))


def test_its_preprocessing_is_torchvisions_own_transform(tmp_path: Path) -> None:
    theirs = torchvisions()
    theirs.transform_input = True
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    graft = Backbone("googlenet_bn", file=str(tmp_path / "googlenet.pth")).build(1000)
    published = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1
    assert get_pretrained_cfg("googlenet_bn").url == published.url
    pixels = torch.rand(2, 3, 96, 96)
    preset = published.transforms()

    def normalize(mean: Any, std: Any) -> Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    ours = normalize(graft.preprocessing.mean, graft.preprocessing.std)
    torch.testing.assert_close(ours, theirs._transform_input(normalize(preset.mean, preset.std)))
    with torch.no_grad():
        expected = theirs.eval()(normalize(preset.mean, preset.std))
        torch.testing.assert_close(graft.network.eval()(ours), expected)
    assert graft.preprocessing.image_size == (preset.crop_size[0],) * 2
    assert graft.preprocessing.crop_pct == preset.crop_size[0] / preset.resize_size[0]
    assert graft.preprocessing.interpolation == preset.interpolation.value


def test_torchvisions_file_without_its_branches(tmp_path: Path) -> None:
    theirs = torchvisions()
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    backbone = Backbone("googlenet_bn", file=str(tmp_path / "googlenet.pth"), options={"aux_heads": False})
    network = backbone.build(1000).network
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), theirs.eval()(images))
    assert count(network) == torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.meta["num_params"]


def test_torchvisions_file_is_not_of_the_papers_network(tmp_path: Path) -> None:
    torch.save(torchvisions().state_dict(), tmp_path / "googlenet.pth")
    with pytest.raises(UserError, match=r"another architecture .* backbone googlenet_bn\.$"):
        Backbone("googlenet", file=str(tmp_path / "googlenet.pth")).build(10)
