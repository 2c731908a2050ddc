"""The log loss once it is calibrated: that of the best temperature, whatever the network's own."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from graftline.training.results import MONITOR, kept_epoch
from graftline.training.temperatures import TEMPERATURES, losses_by_temperature


def made(sure: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (500, 4) that are honest but for being so many times as sure, and labels (500,)."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    return sure * logits, labels


def test_each_temperature_is_that_of_torch() -> None:
    logits, labels = made(1.0)
    losses = losses_by_temperature(logits, labels)
    assert losses.shape == (500, len(TEMPERATURES))
    for column, temperature in enumerate(TEMPERATURES):
        expected = functional.cross_entropy(logits / temperature, labels, reduction="none")
        torch.testing.assert_close(losses[:, column], expected)


@pytest.mark.parametrize("sure", [0.6, 1.0, 2.9, 7.0])
def test_the_best_of_them_is_nearly_the_best_of_all(sure: float) -> None:
    logits, labels = made(sure)

    def loss(temperature: float) -> float:
        return float(functional.cross_entropy(logits / temperature, labels))

    best = minimize_scalar(loss, bounds=(0.3, 12), method="bounded").fun
    found = float(losses_by_temperature(logits, labels).mean(dim=0).min())
    assert best <= found + 1e-9
    assert found - best < 0.002


def test_an_epoch_that_answers_better_and_is_too_sure_of_it_is_kept() -> None:
    """As the later epochs of a whole network are that is trained without augmentation."""
    labels = torch.arange(100) % 2
    epochs = []
    for number, (right, sure) in enumerate([(85, 2.0), (90, 9.0)]):
        signs = torch.where(torch.arange(100) < right, 1.0, -1.0)
        logits = sure * signs[:, None] * functional.one_hot(labels, 2)
        losses = losses_by_temperature(logits, labels).mean(dim=0)
        plain = float(losses[TEMPERATURES.index(1.0)])
        epochs.append({"epoch": float(number), "val/loss": plain, MONITOR: float(losses.min())})
    assert epochs[1]["val/loss"] > 1.5 * epochs[0]["val/loss"]
    assert kept_epoch(epochs, max_epochs=1)["epoch"] == 1  # both are judged
    assert np.isfinite([one[MONITOR] for one in epochs]).all()
