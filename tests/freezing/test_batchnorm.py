"""BatchNorm's statistics: which move, and what they are adapted to."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from graftline.errors import UserError
from graftline.freezing.batchnorm import adapt_to, keeps_statistics, statistics
from graftline.freezing.check import FreezeCheck, FreezeViolationError
from graftline.freezing.measured import Measured
from graftline.freezing.plan import plan_from_depth, set_frozen_eval
from graftline.freezing.rules import AllButHead

SIZE = 64


def make(name: str = "test_efficientnet", **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **options)


def copies(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in statistics(network).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def step(network: nn.Module, *, frozen_statistics: bool) -> None:
    """Do a step as a fit does."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()
    set_frozen_eval(network, frozen_statistics=frozen_statistics)
    network(torch.randn(4, 3, SIZE, SIZE)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_frozen_statistics_stay_while_the_weights_beside_them_move(name: str) -> None:
    options = {"zero_init_last": False} if name == "test_resnet" else {}  # with it, most layers begin without gradient
    network = make(name, **options)
    plan = plan_from_depth(network, 0, "a test")
    plan.apply(network, frozen_statistics=True)
    norms = {key for key, module in network.named_modules() if keeps_statistics(module)}
    assert len(norms) > 3
    assert not any(module.training for key, module in network.named_modules() if key in norms)
    freeze_check = FreezeCheck.of(network, plan, frozen_statistics=True)
    assert freeze_check.hashes.keys() == statistics(network).keys(), "nothing else is frozen"
    before = copy.deepcopy(network.state_dict())
    step(network, frozen_statistics=True)
    freeze_check.check(network)
    after = network.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {f"{norm}.bias" for norm in norms} <= moved
    assert moved.isdisjoint(statistics(network))


def test_statistics_that_are_not_held_are_named() -> None:
    network = make()
    plan = plan_from_depth(network, 0, "a test")
    plan.apply(network)
    freeze_check = FreezeCheck.of(network, plan, frozen_statistics=True)
    step(network, frozen_statistics=False)
    with pytest.raises(FreezeViolationError, match=r"bn1\.running_mean is frozen, but not what it was"):
        freeze_check.check(network)


def test_adapted_statistics_are_those_of_the_images() -> None:
    network = make(drop_rate=0.5, drop_path_rate=0.5).train()
    batches = [torch.rand(8, 3, SIZE, SIZE) for _ in range(3)]
    stem = network.conv_stem(torch.cat(batches)).detach()  # (24, C, H, W)
    by_torch = make()
    update_bn(batches, by_torch)
    weights = {name: parameter.clone() for name, parameter in network.named_parameters()}
    adapt_to(network, batches)
    torch.testing.assert_close(network.bn1.running_mean, stem.mean((0, 2, 3)))
    variances = torch.stack([part.var((0, 2, 3)) for part in stem.split(8)])
    torch.testing.assert_close(network.bn1.running_var, variances.mean(0))
    assert equal(copies(network), copies(by_torch)), "in all layers, without dropout and stochastic depth"
    assert all(torch.equal(weights[name], parameter) for name, parameter in network.named_parameters())


def test_only_statistics_change() -> None:
    network = make().train()
    network.blocks[0].eval()
    modes = [module.training for module in network.modules()]
    momenta = [module.momentum for module in network.modules() if keeps_statistics(module)]
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    adapt_to(network, [torch.ones(2, 3, SIZE, SIZE)])
    assert torch.equal(torch.rand(1), expected)
    assert [module.training for module in network.modules()] == modes
    assert [module.momentum for module in network.modules() if keeps_statistics(module)] == momenta


class WithSide(nn.Module):
    """A network with a side that only a training would use."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.side = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.side.running_mean = torch.full((3,), 7.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.used(images)
        return outputs


def test_a_batchnorm_that_no_image_comes_by_keeps_what_it_has() -> None:
    network = WithSide()
    adapt_to(network, [torch.rand(4, 3, 8, 8)])
    kept = statistics(network)
    assert kept["side.running_mean"].tolist() == [7.0] * 3
    assert kept["used.running_mean"].min() > 0.3


def test_layers_without_statistics_have_none() -> None:
    assert not statistics(make("test_vit"))
    assert not statistics(nn.BatchNorm2d(3, track_running_stats=False))
    assert statistics(nn.SyncBatchNorm(3)).keys() == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_choice_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"AllButHead\.batchnorm is 'off': use one of auto, trained, frozen, adapted\."):
        AllButHead(batchnorm="off")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"Measured\.batchnorm is 'off'"):
        Measured(batchnorm="off")  # type: ignore[arg-type]
