"""GoogLeNet's auxiliary heads in training: what they add to the loss, how far their gradient reaches, when left out."""

import copy
import functools
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import graftline.backbones.zoo  # noqa: F401  # registers googlenet with timm
from graftline.data.loaders import Batch
from graftline.freezing.plan import plan_from_depth
from graftline.training.module import AUX_LOSS_WEIGHT, GraftModule, StepOutput
from graftline.training.schedule import constant

CLASSES, SIZE, BATCH = 3, 32, 4
GROUPS = 10  # the stem, 3a, 3b, 4a with the first branch, 4b, 4c, 4d with the second, 4e, 5a, 5b


def build(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("googlenet", num_classes=CLASSES, drop_rate=0.0, **arguments)


def module(network: Any, **changes: Any) -> GraftModule:
    arguments: dict[str, Any] = {
        "optimizer": functools.partial(torch.optim.SGD, lr=0.01),
        "schedule": constant,
        "weight_decay": 0.0,
    }
    return GraftModule(network, **{**arguments, **changes})


def silence_dropout(network: Any) -> None:
    for branch in (network.side1, network.side2):
        branch.drop.p = 0.0


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(BATCH, 3, SIZE, SIZE, generator=generator),
        "label": torch.tensor([0, 1, 2, 1]),
        "weight": torch.tensor([1.0, 0.5, 0.0, 2.0]),
        "index": torch.arange(BATCH),
    }


def step(graft: GraftModule, batch: Batch, target: Tensor | None = None, smoothing: float = 0.0) -> StepOutput:
    return graft.step(
        batch["image"], batch["label"] if target is None else target, batch["weight"], smoothing=smoothing
    )


def by_hand(logits: Tensor, labels: Tensor, class_weights: Tensor, smoothing: float) -> Tensor:
    """Return the smoothed cross-entropy of each image (Szegedy et al. 2016, section 7) times its class's weight."""
    log_probabilities = logits - logits.logsumexp(dim=1, keepdim=True)
    target = torch.eye(CLASSES)[labels] * (1 - smoothing) + smoothing / CLASSES
    return -(target * log_probabilities).sum(dim=1) * class_weights[labels]


def test_the_loss_is_the_networks_and_three_tenths_of_each_branchs(batch: Batch) -> None:
    network, class_weights = build(), torch.tensor([0.5, 1.0, 2.0])
    silence_dropout(network)
    graft = module(network, class_weights=class_weights, use_sample_weights=True)
    main, first, second = (by_hand(out, batch["label"], class_weights, 0.1) for out in network(batch["image"]))
    found = step(graft, batch, smoothing=0.1)
    expected = main + 0.3 * first + 0.3 * second
    torch.testing.assert_close(found.losses, expected)
    torch.testing.assert_close(found.loss, (expected * batch["weight"]).sum() / 3.5)
    torch.testing.assert_close(found.logits, network(batch["image"])[0])


def test_soft_labels_are_the_branches_too(batch: Batch) -> None:
    network = build()
    silence_dropout(network)
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6], [0.5, 0.0, 0.5]])
    expected = sum(
        weight * -(soft * out.log_softmax(dim=1)).sum(dim=1)
        for weight, out in zip((1.0, 0.3, 0.3), network(batch["image"]), strict=True)
    )
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(step(module(network), batch, target=soft).losses, expected)


def test_evaluation_has_no_branches(batch: Batch) -> None:
    graft = module(build()).eval()
    assert isinstance(graft(batch["image"]), Tensor)
    found = step(graft, batch)
    torch.testing.assert_close(found.losses, F.cross_entropy(found.logits, batch["label"], reduction="none"))


def test_a_tail_that_still_gives_them_in_evaluation_is_not_heard(batch: Batch) -> None:
    """A network that was traced in training mode has no other mode."""
    network = build()
    silence_dropout(network)
    traced = torch.fx.symbolic_trace(network)
    graft = module(traced)
    torch.testing.assert_close(step(graft, batch).losses, step(module(network), batch).losses)
    found = step(graft.eval(), batch)
    assert isinstance(graft(batch["image"]), tuple)
    torch.testing.assert_close(found.losses, F.cross_entropy(found.logits, batch["label"], reduction="none"))


def test_gradient_reaches_the_middle_through_the_branches(batch: Batch) -> None:
    network = build()
    module(network)
    main, first, second = network(batch["image"])
    side_loss = AUX_LOSS_WEIGHT * (F.cross_entropy(first, batch["label"]) + F.cross_entropy(second, batch["label"]))
    (side_loss + 0.0 * main.sum()).backward()  # the main path's gradient is zero
    reached = {
        name: any(bool(p.grad.any()) for p in block.parameters() if p.grad is not None)
        for name, block in network.named_children()
        if list(block.parameters())
    }
    below = {"conv1", "conv2", "conv3", *(f"inception{block}" for block in ("3a", "3b", "4a", "4b", "4c", "4d"))}
    assert {name for name, is_reached in reached.items() if is_reached} == {*below, "side1", "side2"}


def test_the_first_branch_alone_reaches_no_further_than_4a(batch: Batch) -> None:
    network = build()
    _, first, _ = network(batch["image"])
    F.cross_entropy(first, batch["label"]).backward()  # type: ignore[no-untyped-call]  # torch's has no types
    reached = {name.partition(".")[0] for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert reached == {"conv1", "conv2", "conv3", "inception3a", "inception3b", "inception4a", "side1"}


def left_out(frozen: int) -> list[str]:
    """Return which branches hang on the lowest ``frozen`` groups."""
    return [number for number, group in (("1", 4), ("2", 7)) if frozen >= group]


@pytest.mark.parametrize("frozen", range(GROUPS + 1))
def test_a_branch_below_the_boundary_is_left_out_and_said(batch: Batch, frozen: int) -> None:
    network = build()
    plan = plan_from_depth(network, frozen, "a boundary")
    assert plan.num_groups == GROUPS
    plan.apply(network)
    sentence = plan.sentence(network)
    out = left_out(frozen)
    for number in ("1", "2"):
        assert (f"; auxiliary head {number} lies below the boundary and is left out" in sentence) == (number in out)
    graft = module(network).train()
    outputs = graft(batch["image"])
    assert (len(outputs) if isinstance(outputs, tuple) else 1) == 3 - len(out)

    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.01)
    loss = graft.step(batch["image"], batch["label"], batch["weight"], smoothing=0.0).loss
    loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
    assert bool(loss.isfinite())
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad), "DDP waits for each of them"
    optimizer.step()
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(before[name], tensor)}
    assert moved == plan.trainable


def test_a_network_without_branches_says_nothing_of_them() -> None:
    for network in (build(aux_heads=False), timm.create_model("test_resnet", num_classes=CLASSES)):
        assert "branch" not in plan_from_depth(network, 4, "a boundary").sentence(network)
