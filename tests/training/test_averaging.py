"""Averaged weights: timm's decay step by step, and what is frozen stays bit for bit as it is."""

from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from timm.utils import ModelEmaV3
from torch import nn

from graftline.training.averaging import AveragedWeights, update_average, warmed_up_decay


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999])
def test_the_decay_is_timms_step_by_step(decay: float) -> None:
    """timm counts the first update, which copies the weights, too."""
    theirs = ModelEmaV3(nn.Linear(1, 1), decay=decay, use_warmup=True)
    for step in [*range(200), 1000, 40_000, 10**6]:
        assert warmed_up_decay(step, decay) == pytest.approx(theirs.get_decay(step + 1), abs=1e-12)


def test_the_decay_grows_from_none_to_the_one_asked_for() -> None:
    decays = [warmed_up_decay(step, 0.999) for step in range(40_000)]
    assert decays[0] == 0.0
    assert decays == sorted(decays)
    assert decays[-1] == 0.999
    first_steps_weight = 1.0
    for decay in decays[1:750]:
        first_steps_weight *= decay
    assert first_steps_weight < 1e-6, "a constant 0.999 holds 47 % of it"


@pytest.mark.parametrize("decay", [0.0, 0.37, 0.5, 0.9, 0.999])
def test_what_does_not_change_stays_bit_for_bit(decay: float) -> None:
    torch.manual_seed(0)
    frozen, counter = torch.randn(1000) * 3.7, torch.tensor(101)
    for value in (frozen, counter):
        averaged = [value.clone()]
        for _ in range(5):
            update_average(averaged, [value], decay)
        assert averaged[0].equal(value)


def test_the_average_is_the_sum_it_should_be() -> None:
    values, expected = torch.randn(6, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    averaged, counter = [torch.zeros(4, dtype=torch.float64)], [torch.tensor(0)]
    for step, value in enumerate(values):
        decay = warmed_up_decay(step, 0.8)
        expected = decay * expected + (1 - decay) * value
        update_average(averaged, [value], decay)
        update_average(counter, [torch.tensor(step)], decay)
    torch.testing.assert_close(averaged[0], expected)
    assert counter[0] == 5, "a counter is the newest, not a mean"


def test_the_average_begins_on_the_device_that_trains() -> None:
    """Lightning moves the module there only after its callbacks were set up; no numbers are needed to see it."""
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    module: Any = pl.LightningModule()
    module.network = nn.BatchNorm1d(2)
    callback = AveragedWeights(0.9)
    callback.setup(trainer, module, "fit")
    assert callback._average_model is not None
    assert {tensor.device.type for tensor in callback._average_model.state_dict().values()} == {"meta"}
    assert module.network.weight.device.type == "cpu"
