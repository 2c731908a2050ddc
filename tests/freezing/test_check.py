"""The freeze check holds where frozen is frozen, and names the tensor where it is not."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from graftline.errors import UserError
from graftline.features.cut import cut
from graftline.freezing.check import FIRST_STEPS, FreezeCheck, FreezeViolationError, hash_of
from graftline.freezing.plan import FreezePlan, plan_from_depth, set_frozen_eval
from graftline.freezing.rule import FreezeContext
from graftline.freezing.rules import Gradual, Names

SIZE = 64


def make(name: str = "test_efficientnet", frozen: int = 3) -> tuple[Any, FreezePlan]:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3)
    plan = plan_from_depth(network, frozen, "a test")
    plan.apply(network)
    return network, plan


def train(
    network: Any, freeze_check: FreezeCheck, steps: int = 2, hold: Callable[[nn.Module], None] = set_frozen_eval
) -> None:
    """Do a few steps as a fit does."""
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        network.train()
        hold(network)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(torch.randn(4, 3, SIZE, SIZE)), torch.tensor([0, 1, 2, 0]))
        loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
        freeze_check.check_gradients(network)
        optimizer.step()


def tensors(network: nn.Module, plan: FreezePlan) -> set[str]:
    """What must stay as it is: derived from the optimizer's view, apart from the freeze check's own code."""
    parameters = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    buffers = {name for name, _ in network.named_buffers()}
    owners = {name.rpartition(".")[0] for name in plan.trainable}
    return parameters | {name for name in buffers if name.rpartition(".")[0] not in owners}


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("frozen", [0, 2, 9])
def test_it_holds_through_a_training(name: str, frozen: int) -> None:
    network, plan = make(name, frozen)
    if name == "test_vit":
        network.set_input_size((SIZE, SIZE))
    freeze_check = FreezeCheck.of(network, plan)
    assert set(freeze_check.hashes) == tensors(network, plan)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    train(network, freeze_check)
    freeze_check.check(network)
    after = network.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])}.isdisjoint(freeze_check.hashes)


def test_it_counts() -> None:
    network, plan = make()
    record = FreezeCheck.of(network, plan).record()
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    assert record["trained_parameters"] == sum(size for name, size in sizes.items() if name in plan.trainable)
    assert record["trained_parameters"] + record["frozen_parameters"] == sum(sizes.values())
    assert record["trained_tensors"] == len(plan.trainable)
    assert record["frozen_tensors"] == len(tensors(network, plan))
    with torch.no_grad():
        network.bn1.weight[0] += 1
    assert FreezeCheck.of(network, plan).record()["frozen_digest"] != record["frozen_digest"]


def test_a_batchnorm_that_is_not_held_is_named() -> None:
    network, plan = make()
    freeze_check = FreezeCheck.of(network, plan)
    train(network, freeze_check, hold=lambda _: None)
    with pytest.raises(FreezeViolationError, match=r"bn1\.running_mean is frozen, but not what it was"):
        freeze_check.check(network)


@pytest.mark.parametrize("name", ["conv_stem.weight", "blocks.1.0.bn2.bias", "bn1.num_batches_tracked"])
def test_a_frozen_tensor_that_moves_is_named(name: str) -> None:
    network, plan = make()
    freeze_check = FreezeCheck.of(network, plan)
    with torch.no_grad():
        tensor = dict([*network.named_parameters(), *network.named_buffers()])[name]
        tensor.view(-1)[-1:] += 1
    with pytest.raises(FreezeViolationError, match=rf"{name} is frozen, but not what it was"):
        freeze_check.check(network)


def test_a_nudge_of_the_last_bit_is_seen() -> None:
    network, plan = make()
    freeze_check = FreezeCheck.of(network, plan)
    weight = network.conv_stem.weight.data
    weight.view(torch.int32)[0, 0, 0, 0] ^= 1
    with pytest.raises(FreezeViolationError, match=r"conv_stem\.weight"):
        freeze_check.check(network)


def test_layout_and_device_make_no_difference_but_type_does() -> None:
    network, plan = make()
    freeze_check = FreezeCheck.of(network, plan)
    freeze_check.check(network.to(memory_format=torch.channels_last))
    with pytest.raises(FreezeViolationError, match="is frozen, but not what it was"):
        freeze_check.check(network.half())
    assert hash_of(torch.zeros(4)) != hash_of(torch.zeros(4, dtype=torch.int32))
    assert hash_of(torch.zeros((), dtype=torch.bfloat16)) != hash_of(torch.zeros(1, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("name", "trained", "message"),
    [
        ("conv_stem.weight", True, r"conv_stem\.weight is trained, but the plan freezes it"),
        ("classifier.bias", False, r"classifier\.bias is frozen, but the plan trains it"),
    ],
)
def test_another_set_of_trained_tensors_is_named(name: str, trained: bool, message: str) -> None:
    network, plan = make()
    freeze_check = FreezeCheck.of(network, plan)
    network.get_parameter(name).requires_grad_(trained)
    with pytest.raises(FreezeViolationError, match=message):
        freeze_check.check(network)
    with pytest.raises(FreezeViolationError, match=message):
        FreezeCheck.of(network, plan)


class Forgetful(nn.Module):
    """A network with a layer that it forgets to call, and a head whose output it may forget."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        self.body, self.unused, self.fc = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.use_head = head

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images.mean((2, 3)))
        logits: torch.Tensor = features + self.fc(features) * (1.0 if self.use_head else 0.0)
        return logits


def whole(network: nn.Module) -> FreezePlan:
    return FreezePlan(frozenset(name for name, _ in network.named_parameters()), 0, 1, "a test")


def test_a_trained_tensor_off_the_way_is_named() -> None:
    network = Forgetful(head=True)
    freeze_check = FreezeCheck.of(network, whole(network))
    with pytest.raises(FreezeViolationError, match=r"unused\.bias is to be trained, but gets no gradient"):
        train(network, freeze_check, steps=FIRST_STEPS)
    short = FreezeCheck.of(network, whole(network))
    train(network, short, steps=1)
    with pytest.raises(FreezeViolationError, match=r"unused\.bias is to be trained, but gets no gradient"):
        short.check(network)


def test_a_head_that_makes_no_difference_is_named() -> None:
    network = Forgetful(head=False)
    del network.unused
    freeze_check = FreezeCheck.of(network, whole(network))
    message = r"fc\.bias is to be trained, but has a gradient of zero: the loss does not depend on the head"
    with pytest.raises(FreezeViolationError, match=message):
        train(network, freeze_check, steps=FIRST_STEPS)


def test_a_gradient_may_overflow_in_the_first_steps_but_not_in_all() -> None:
    network, plan = make()
    freeze_check = FreezeCheck.of(network, plan)
    for step in range(FIRST_STEPS):
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, torch.inf if step < FIRST_STEPS - 1 else 1.0)
        freeze_check.check_gradients(network)
    freeze_check.check(network)
    again = FreezeCheck.of(network, plan)
    network.classifier.weight.grad[0, 0] = torch.nan
    for _ in range(FIRST_STEPS - 1):
        again.check_gradients(network)
    with pytest.raises(FreezeViolationError, match=r"classifier\.weight is to be trained, but gets no finite gradient"):
        again.check_gradients(network)


def test_later_gradients_are_not_looked_at() -> None:
    network, plan = make()
    freeze_check = FreezeCheck.of(network, plan)
    train(network, freeze_check, steps=1)
    network.zero_grad()
    for _ in range(FIRST_STEPS):
        freeze_check.check_gradients(network)
    freeze_check.check(network)


def test_a_tail_has_the_names_of_its_network() -> None:
    network, plan = make(frozen=6)
    parts = cut(network, plan.trainable, (SIZE, SIZE))
    for part in (parts.tail, parts.trunk):  # the trunk has nothing that is trained
        network.zero_grad()
        parts.tail(parts.trunk(torch.randn(4, 3, SIZE, SIZE)).detach()).square().mean().backward()
        freeze_check = FreezeCheck.of(network, plan)
        freeze_check.check_gradients(part)
        if part is parts.tail:
            freeze_check.check(network)
    with pytest.raises(FreezeViolationError, match=r"classifier\.\w+ is to be trained, but is not in the network"):
        freeze_check.check(network)


def test_a_resume_is_held_to_the_first_start() -> None:
    network, plan = make()
    kept = json.loads(json.dumps(FreezeCheck.of(network, plan).to_json()))
    assert FreezeCheck.from_json(kept) == FreezeCheck.of(network, plan)
    resumed, _ = make()
    train(resumed, FreezeCheck.of(resumed, plan))
    FreezeCheck.from_json(kept).check(resumed)
    with torch.no_grad():
        resumed.conv_stem.weight.mul_(1.001)  # other weights than at the first start
    with pytest.raises(FreezeViolationError, match=r"conv_stem\.weight is frozen, but not what it was"):
        FreezeCheck.from_json(kept).check(resumed)
    other, _ = make(frozen=2)
    with pytest.raises(FreezeViolationError, match=r"blocks\.1\.\S+ is trained, but the plan freezes it"):
        FreezeCheck.from_json(kept).check(other)
    kept["hashes"]["gone.weight"] = "0"
    with pytest.raises(FreezeViolationError, match=r"gone\.weight was frozen, and now it is not there"):
        FreezeCheck.from_json(kept).check(make()[0])


def test_each_phase_has_a_freeze_check_of_its_own() -> None:
    network, _ = make()
    context = FreezeContext(network, 100, pretrained=True)
    earlier: list[FreezeCheck] = []
    for plan in Gradual(until=0.5).decide(context).plans:
        network.eval()  # as validation left it
        plan.apply(network)
        assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == plan.trainable
        assert network.blocks[4].training != plan.only_head
        freeze_check = FreezeCheck.of(network, plan)
        train(network, freeze_check, steps=1)
        freeze_check.check(network)
        earlier.append(freeze_check)
    assert len(earlier) == 4
    with pytest.raises(FreezeViolationError, match="is trained, but the plan freezes it"):
        earlier[0].check(network)


def test_what_is_frozen_in_a_trained_module_is_held_to_as_well() -> None:
    network, _ = make()
    (plan,) = Names(["bn1.weight"]).decide(FreezeContext(network, 100, pretrained=True)).plans
    plan.apply(network)
    freeze_check = FreezeCheck.of(network, plan)
    assert set(freeze_check.hashes) == {"bn1.weight"}  # its bias is trained, so its statistics move
    train(network, freeze_check)
    freeze_check.check(network)
    assert isinstance(FreezeViolationError("x"), UserError)
