"""Gradient checkpointing: the same numbers, with less in memory."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from graftline.backbones import catalog
from graftline.backbones.backbone import Backbone
from graftline.errors import UserError
from graftline.features.cache import Features
from graftline.freezing.plan import plan_from_depth
from graftline.training.checkpointing import checkpointed
from graftline.training.fit_directory import FitDirectory
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.results import PhaseResult
from graftline.training.setup import TrainingSetup

MakeSetup = Callable[..., TrainingSetup]


def train(setup: TrainingSetup, directory: Path, frozen_groups: int) -> tuple[PhaseResult, dict[str, Tensor]]:
    network = setup.graft.network
    plan = plan_from_depth(network, frozen_groups, "test", epochs=2, learning_rate=0.003)
    result = fit_phase(setup, plan, FitDirectory(directory), show_progress=False)
    return result, network.state_dict()


@pytest.mark.parametrize(
    ("name", "frozen_groups"), [("test_efficientnet", 0), ("test_efficientnet", 2), ("test_vit", 1)]
)
def test_the_numbers_are_those_without(make_setup: MakeSetup, tmp_path: Path, name: str, frozen_groups: int) -> None:
    results = {}
    for on in (False, True):
        recipe, cache = Recipe(batch_size=12, workers=0, grad_checkpointing=on), on  # which leaves the cache alone
        setup = make_setup(recipe=recipe, features=Features(cache, directory=str(tmp_path / "cache")))
        if name == "test_vit":
            torch.manual_seed(0)
            network = timm.create_model(name, num_classes=3, img_size=32)
            object.__setattr__(setup.graft, "network", network)
        results[on] = train(setup, tmp_path / f"{on}", frozen_groups)
    (plain, plain_state), (less, state) = results[False], results[True]
    assert "gradient checkpointing needs the whole network" in less.source
    for one, other in zip(plain.history.epochs, less.history.epochs, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], abs=1e-5)
        assert one["val/loss"] == pytest.approx(other["val/loss"], abs=1e-5)
    for key, value in plain_state.items():
        assert torch.allclose(state[key].double(), value.double(), atol=1e-5), key


def saved_bytes(network: nn.Module, images: Tensor) -> int:
    """Return how many bytes the backward pass finds kept, each tensor counted once."""
    kept: dict[int, int] = {}
    parameters = {parameter.data_ptr() for parameter in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(images).sum()
    size = sum(kept.values())
    loss.backward()
    return size


def test_less_is_kept_in_memory() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=96, depth=8)
    images = torch.randn(2, 3, 96, 96)
    plain = saved_bytes(network, images)
    with checkpointed(network, on=True):
        less = saved_bytes(network, images)
    assert less < plain / 10, (less, plain)
    assert saved_bytes(network, images) == plain, "only during the block"


def test_statistics_move_once_and_gradients_are_the_same() -> None:
    torch.manual_seed(0)
    plain: Any = timm.create_model("test_efficientnet", num_classes=3)
    other, images = copy.deepcopy(plain), torch.randn(4, 3, 64, 64)
    plain(images).square().sum().backward()
    with checkpointed(other, on=True):
        other(images).square().sum().backward()
    assert all(torch.equal(one, two) for one, two in zip(plain.buffers(), other.buffers(), strict=True))
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.allclose(one.grad, two.grad, atol=1e-5)


def test_a_network_that_cannot_is_refused() -> None:
    for name in ("test_vit", "lenet5"):
        catalog.check(name)  # our own networks register themselves there
    Backbone("test_vit").check_checkpointing()
    with pytest.raises(
        UserError, match=r"'lenet5' has no gradient checkpointing: leave out Recipe\.grad_checkpointing"
    ):
        Backbone("lenet5").check_checkpointing()
