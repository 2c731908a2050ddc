"""LeNet-5: the paper's numbers, and digits learned from scratch."""

from collections.abc import Iterator

import pytest
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Backbone
from graftline.backbones.zoo.lenet5 import LeNet5


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_and_shapes_are_those_of_the_notes() -> None:
    network = timm.create_model("lenet5")
    assert num_parameters(network) == 61_706
    images = torch.randn(2, 1, 32, 32)
    assert network.conv1[0](images).shape == (2, 6, 28, 28)
    assert network.conv1(images).shape == (2, 6, 14, 14)
    assert network.conv2[0](network.conv1(images)).shape == (2, 16, 10, 10)
    assert network.forward_features(images).shape == (2, 16, 5, 5)
    assert network.fc1[0].weight.shape == (120, 400)
    assert network.forward_head(network.forward_features(images), pre_logits=True).shape == (2, 84)
    assert network(images).shape == (2, 10)


def test_it_equals_the_formula() -> None:
    network = LeNet5().eval()
    x = images = torch.randn(3, 1, 32, 32)
    for layer in ("conv1", "conv2"):
        conv = network.get_submodule(f"{layer}.0")
        assert isinstance(conv, nn.Conv2d)
        x = F.avg_pool2d(torch.tanh(F.conv2d(x, conv.weight, conv.bias)), 2)
    x = x.flatten(1)
    for layer in ("fc1.0", "fc2.0"):
        x = torch.tanh(F.linear(x, network.get_parameter(f"{layer}.weight"), network.get_parameter(f"{layer}.bias")))
    x = F.linear(x, network.get_parameter("fc3.weight"), network.get_parameter("fc3.bias"))
    torch.testing.assert_close(network(images), x)


@pytest.mark.parametrize(("size", "num_inputs"), [(16, 16 * 1), (28, 16 * 16), (32, 16 * 25), (64, 16 * 169)])
def test_other_sizes_change_the_first_fully_connected_layer(size: int, num_inputs: int) -> None:
    network = LeNet5(img_size=size)
    assert network.get_parameter("fc1.0.weight").shape == (120, num_inputs)
    assert network(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_an_oblong_size_and_one_that_is_too_small() -> None:
    assert LeNet5(img_size=(32, 28))(torch.randn(2, 1, 32, 28)).shape == (2, 10)
    with pytest.raises(ValueError, match="takes images of 16 px or more"):
        LeNet5(img_size=(32, 15))


def test_the_input_is_scaled_as_in_the_paper() -> None:
    preprocessing = Backbone("lenet5", weights="none").build(10).preprocessing
    assert (preprocessing.channels, preprocessing.image_size) == (1, (32, 32))
    black_and_white = torch.tensor([0.0, 1.0])
    scaled = (black_and_white - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    torch.testing.assert_close(scaled, torch.tensor([-0.1, 1.175]))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as a network of this size can use: more of them wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_it_learns_digits_from_scratch() -> None:
    preprocessing = Backbone("lenet5", weights="none").build(10).preprocessing
    train, train_labels, test, test_labels = digits(preprocessing)
    torch.manual_seed(0)
    network = LeNet5()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(8):
        for batch in torch.split(torch.randperm(len(train)), 64):
            optimizer.zero_grad()
            F.cross_entropy(network(train[batch]), train_labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        right = network.eval()(test).argmax(1) == test_labels
    assert right.float().mean() >= 0.95


def digits(preprocessing: Preprocessing) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images (N, 1, 32, 32) and labels (N,), to train with and to test with: 8x8 scans of written digits."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16  # levels 0 to 16; (N, 1, 8, 8)
    images = F.interpolate(images, size=preprocessing.image_size, mode="bilinear")
    images = (images - preprocessing.mean[0]) / preprocessing.std[0]
    labels = torch.from_numpy(data.target)
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.25, random_state=0, stratify=labels)
    return images[train], labels[train], images[test], labels[test]
