"""Averaged weights: timm's decay step by step, and what is frozen stays bit for bit as it is."""

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from graftline.training.averaging import update_average, warmed_up_decay


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
