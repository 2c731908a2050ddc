"""Frozen means: no gradient, eval mode kept, out of the optimiser; buffers bit-equal after training."""

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftline.backbones.layers import body_groups, head_parameters
from graftline.errors import UserError
from graftline.freezing.plan import hold_frozen
from graftline.freezing.rules import AllButHead, Auto, Nothing, Row, refuse_frozen_noise

TABLE: list[Row] = [
    {"images_per_class": 0, "frozen": 1.0},
    {"images_per_class": 1000, "frozen": 0.5},
    {"images_per_class": 10000, "frozen": 0.0},
]


@pytest.fixture(params=["test_efficientnet", "test_resnet", "test_vit", "test_convnext"])
def network(request: pytest.FixtureRequest) -> Any:
    return timm.create_model(request.param, num_classes=3)


def test_groups_and_head_are_all_parameters_once(network: Any) -> None:
    names = [name for group in body_groups(network) for name in group]
    assert len(names) == len(set(names))
    assert set(names) | head_parameters(network) == {name for name, _ in network.named_parameters()}
    assert len(head_parameters(network)) == 2


@pytest.mark.parametrize("name", ["poolformer_s12", "rdnet_tiny", "pit_ti_224", "caformer_s18"])
def test_a_network_without_layer_groups_is_one_group(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=3)
    assert len(body_groups(network)) == 1
    plan = AllButHead().plan(network, 100)
    assert plan.only_head
    assert plan.trainable == head_parameters(network)
    assert Nothing().plan(network, 100).trainable == {name for name, _ in network.named_parameters()}


def test_a_network_without_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="another backbone"):
        head_parameters(torch.nn.Linear(2, 2))


def test_all_but_head_trains_exactly_the_head(network: Any) -> None:
    plan = AllButHead().plan(network, 100)
    plan.apply(network)
    assert plan.only_head
    assert {n for n, p in network.named_parameters() if p.requires_grad} == head_parameters(network) == plan.trainable


def test_nothing_frozen_trains_everything(network: Any) -> None:
    plan = Nothing().plan(network, 100)
    plan.apply(network)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())


def test_frozen_half_stays_bit_equal_through_training(network: Any) -> None:
    plan = Auto(TABLE).plan(network, 1000)
    plan.apply(network)
    assert 0 < plan.frozen_groups < plan.num_groups
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    frozen = {name for name, _ in network.named_parameters()} - plan.trainable
    frozen_modules = [
        m for m in network.modules() if list(m.parameters()) and not any(p.requires_grad for p in m.parameters())
    ]
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        network.train()
        hold_frozen(network)
        network(torch.randn(4, 3, *network.pretrained_cfg["input_size"][1:])).square().mean().backward()
        optimiser.step()
    after = network.state_dict()
    frozen_buffers = {
        f"{prefix}.{name}"
        for prefix, module in network.named_modules()
        if module in frozen_modules
        for name, _ in module.named_buffers(recurse=False)
    }
    for name in frozen | frozen_buffers:
        assert torch.equal(before[name], after[name]), name
    assert any(not torch.equal(before[name], after[name]) for name in plan.trainable)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_auto_freezes_no_more_with_more_images(a: float, b: float) -> None:
    fewer, more = sorted((a, b))
    network = timm.create_model("test_resnet", num_classes=3)
    rule = Auto(TABLE)
    assert rule.plan(network, fewer).frozen_groups >= rule.plan(network, more).frozen_groups


@pytest.mark.parametrize(
    "table",
    [
        [],
        [{"images_per_class": 5, "frozen": 1.0}],
        [{"images_per_class": 0, "frozen": 0.0}, {"images_per_class": 9, "frozen": 1.0}],
        [{"images_per_class": 0, "frozen": 1.5}],
    ],
)
def test_auto_refuses_a_table_that_makes_no_sense(table: list[Row]) -> None:
    with pytest.raises(UserError, match=r"freeze\.table must"):
        Auto(table)


def test_a_frozen_random_network_is_refused() -> None:
    network = timm.create_model("test_resnet", num_classes=3)
    with pytest.raises(UserError, match="freeze=none"):
        refuse_frozen_noise(AllButHead().plan(network, 10), pretrained=False)
    refuse_frozen_noise(AllButHead().plan(network, 10), pretrained=True)
    refuse_frozen_noise(Nothing().plan(network, 10), pretrained=False)
