"""Frozen means: no gradient, eval mode kept, out of the optimizer; buffers bit-equal after training."""

from typing import Any

import pytest
import timm
import torch

from graftline.backbones.layers import body_groups, group_names, head_parameters
from graftline.errors import UserError
from graftline.freezing.plan import FreezePlan, set_frozen_eval
from graftline.freezing.rates import whole_network_rate
from graftline.freezing.rule import FreezeContext, FreezeRule
from graftline.freezing.rules import AllButHead, FirstStages, Nothing


def only_plan(rule: FreezeRule, network: Any, epochs: int | None = None) -> FreezePlan:
    (plan,) = rule.decide(FreezeContext(network, 100, pretrained=True, epochs=epochs)).plans
    return plan


@pytest.fixture(params=["test_efficientnet", "test_resnet", "test_vit", "test_convnext"])
def network(request: pytest.FixtureRequest) -> Any:
    return timm.create_model(request.param, num_classes=3)


def test_groups_and_head_are_all_parameters_once(network: Any) -> None:
    names = [name for group in body_groups(network) for name in group]
    assert len(names) == len(set(names))
    assert set(names) | head_parameters(network) == {name for name, _ in network.named_parameters()}
    assert len(head_parameters(network)) == 2


@pytest.mark.parametrize(
    "name", ["convnext_tiny", "swin_tiny_patch4_window7_224", "densenet121", "resnetv2_50", "vit_small_patch16_224"]
)
def test_the_last_layer_group_is_more_than_a_norm(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=3)
    *_, last = body_groups(network)
    assert any(network.get_parameter(parameter).ndim > 1 for parameter in last)
    assert group_names(network)[-1] != "norm"


@pytest.mark.parametrize("name", ["poolformer_s12", "rdnet_tiny", "pit_ti_224", "caformer_s18"])
def test_a_network_without_layer_groups_is_one_group(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=3)
    assert len(body_groups(network)) == 1
    plan = only_plan(AllButHead(), network)
    assert plan.only_head
    assert plan.trainable == head_parameters(network)
    assert only_plan(Nothing(), network).trainable == {name for name, _ in network.named_parameters()}


def test_a_network_without_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="another backbone"):
        head_parameters(torch.nn.Linear(2, 2))


def test_all_but_head_trains_exactly_the_head(network: Any) -> None:
    plan = only_plan(AllButHead(), network)
    plan.apply(network)
    assert plan.only_head
    assert {n for n, p in network.named_parameters() if p.requires_grad} == head_parameters(network) == plan.trainable


def test_nothing_frozen_trains_everything(network: Any) -> None:
    plan = only_plan(Nothing(), network)
    plan.apply(network)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())


def test_frozen_half_stays_bit_equal_through_training(network: Any) -> None:
    plan = only_plan(FirstStages(fraction=0.5), network)
    plan.apply(network)
    assert 0 < plan.frozen_groups < plan.num_groups
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    frozen = {name for name, _ in network.named_parameters()} - plan.trainable
    frozen_modules = [
        m for m in network.modules() if list(m.parameters()) and not any(p.requires_grad for p in m.parameters())
    ]
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        network.train()
        set_frozen_eval(network)
        network(torch.randn(4, 3, *network.pretrained_cfg["input_size"][1:])).square().mean().backward()
        optimizer.step()
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


def test_the_sentence_says_what_for_how_long_and_how_much(network: Any) -> None:
    plan = only_plan(FirstStages(number=2), network, epochs=1)
    trained = sum(parameter.numel() for name, parameter in network.named_parameters() if name in plan.trainable)
    total = sum(parameter.numel() for parameter in network.parameters())
    groups = len(body_groups(network))
    first, second = group_names(network)[:2]
    assert plan.decision == f"{first} to {second} (2 of {groups} layer groups) frozen, 1 epoch"
    assert plan.sentence(network) == f"{plan.decision}; {trained:,} of {total:,} parameters are trained"
    described = plan.describe(network)
    assert (described["trained_parameters"], described["frozen_parameters"]) == (trained, total - trained)
    assert (described["epochs"], described["learning_rate"]) == (1, whole_network_rate(network))


def test_groups_have_names_of_their_own(network: Any) -> None:
    names = group_names(network)
    assert len(names) == len(set(names)) == len(body_groups(network))
    assert "head" not in names
