"""Networks that torch cannot train in channels_last on a CPU are trained in its usual order."""

import functools
import subprocess
import sys

import pytest
import timm
import torch

from graftline.training.memory_format import avoid_copies, memory_format
from graftline.training.module import GraftModule
from graftline.training.schedule import constant

BACKWARD = """
import torch
for order in (torch.contiguous_format, torch.channels_last):
    convolution = torch.nn.Conv2d(3, 48, 1, stride=2).to(memory_format=order)
    for _ in range(4):
        convolution(torch.randn(8, 3, 224, 224).contiguous(memory_format=order)).square().mean().backward()
        others = [torch.randn(1000 + number) for number in range(200)]
    print("works", flush=True)
"""


def test_why_this_is_needed() -> None:
    """torch ends the process; should it no longer, `graftline.training.memory_format` can go."""
    done = subprocess.run([sys.executable, "-c", BACKWARD], capture_output=True, text=True)
    assert done.stdout.startswith("works")
    if done.returncode == 0:
        pytest.skip(f"torch {torch.__version__} trains it in channels_last here")
    assert done.returncode < 0, "a signal, no exception"


@pytest.mark.parametrize("name", ["mobileone_s0", "fastvit_t8"])
def test_such_a_network_is_trained_in_the_usual_order(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    assert memory_format(network, on_cpu=True) == torch.contiguous_format
    assert memory_format(network, on_cpu=False) == torch.channels_last
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    assert memory_format(network, on_cpu=True) == torch.channels_last, "what is frozen has no backward pass"


def test_all_others_are_trained_in_channels_last() -> None:
    for name in ("resnet18", "test_efficientnet"):
        assert memory_format(timm.create_model(name), on_cpu=True) == torch.channels_last


class Seen(torch.nn.Conv2d):
    """Notes in which order its images come."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.orders = [
            order
            for order in (torch.contiguous_format, torch.channels_last)
            if images.is_contiguous(memory_format=order)
        ]
        return super().forward(images).mean((2, 3))


@pytest.mark.parametrize(("channels", "order"), [(3, torch.contiguous_format), (16, torch.channels_last)])
def test_weights_and_images_are_in_that_order(channels: int, order: torch.memory_format) -> None:
    network = Seen(channels, 4, 1, stride=2)
    optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    module = GraftModule(
        network.to(memory_format=torch.channels_last), optimizer=optimizer, schedule=constant, weight_decay=0
    )
    module(torch.randn(2, channels, 8, 8).to(memory_format=torch.channels_last))
    assert network.orders == [order]


def test_no_input_of_an_activation_is_copied() -> None:
    images, steps = torch.randn(2, 3, 32, 32), []
    for name in ("test_efficientnet", "test_mambaout"):  # SiLU in place; none in place
        for avoid in (False, True):
            torch.manual_seed(0)
            network = timm.create_model(name, num_classes=3)
            if avoid:
                avoid_copies(network)
            with torch.profiler.profile() as profile:
                network(images).square().sum().backward()
            copies = sum(event.count for event in profile.key_averages() if event.key == "aten::clone")
            steps.append((copies, [parameter.grad for parameter in network.parameters()]))
    (copied, before), (left, after), (usual, _), (still, _) = steps
    assert copied - left >= 6
    assert usual == still
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True) if one is not None)
