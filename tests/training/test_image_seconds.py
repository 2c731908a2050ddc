"""How long an image takes is measured on what the training will do with it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from graftline.execution import Execution
from graftline.freezing.depth import DEEP_BATCH
from graftline.freezing.plan import plan_from_depth
from graftline.training import image_seconds
from graftline.training.image_seconds import TIMED_BATCH, seconds_per_image, step_seconds, timed_batch
from graftline.training.recipe import Recipe
from graftline.training.setup import TrainingSetup
from graftline.training.source_decision import choose_source
from graftline.training.training_source import CachedSource

MakeSetup = Callable[..., TrainingSetup]


@pytest.mark.parametrize(
    ("frozen", "cache", "share"), [(0, False, 1.0), (4, False, 0.6), (4, True, 0.1), (5, True, 0.1)]
)
def test_a_fit_is_planned_by_what_a_step_of_it_takes(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch, frozen: int, cache: bool, share: float
) -> None:
    """A second for the whole network, and less where parameters are frozen or inputs are flat."""
    measure = image_seconds._time_steps

    def seconds(network: nn.Module, shape: tuple[int, ...], setup: TrainingSetup) -> float:
        assert measure(network, shape, setup) > 0
        if len(shape) == 1:
            return 0.1
        return 1.0 if all(parameter.grad is not None for parameter in network.parameters()) else 0.6

    monkeypatch.setattr(image_seconds, "_time_steps", seconds)
    setup = make_setup(features=replace(make_setup().features, cache=cache))
    plan = plan_from_depth(setup.graft.network, frozen, "")
    plan.apply(setup.graft.network)
    source = choose_source(setup, plan)
    assert isinstance(source, CachedSource) is cache
    assert step_seconds(source) == share
    assert all(parameter.grad is None for parameter in setup.graft.network.parameters())


def test_steps_are_timed_as_they_will_be_trained(make_setup: MakeSetup) -> None:
    """In the precision of the training, and on a GPU with the images of a step."""
    setup = make_setup(execution=Execution(precision="bf16-mixed"))
    types: list[torch.dtype] = []
    setup.graft.network.register_forward_hook(lambda _module, _inputs, outputs: types.append(outputs.dtype))
    assert seconds_per_image(setup) > 0
    assert set(types) == {torch.bfloat16}
    assert timed_batch(setup) == TIMED_BATCH
    assert timed_batch(make_setup(execution=Execution("cuda:0"))) == 12
    assert timed_batch(make_setup(execution=Execution("cuda:0"), recipe=Recipe())) == DEEP_BATCH
