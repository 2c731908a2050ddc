"""Averaged weights: an exponential moving average that forgets the first steps quickly.

Lightning's callback and torch's average, with timm's warm-up of the decay. Lightning's own ``EMAWeightAveraging`` has
none, and timm's ``ModelEmaV3`` knows neither Lightning's checkpoints nor a resume.
"""

from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

WARMUP_POWER = (
    2 / 3
)  # timm's default (timm.utils.ModelEmaV3, after Katherine Crowson): 0.999 is reached in 31,600 steps


def warmed_up_decay(step: int, decay: float) -> float:
    """Return the decay of the average at an optimizer step: it grows from 0 to ``decay`` as timm's does.

    A constant 0.999 would still hold 47 % of the first step's weights after 750 steps.

    Args:
        step: optimizer steps done before this one, from 0.
        decay: the decay in the end, 0 to 1.

    >>> [round(warmed_up_decay(step, 0.99), 3) for step in (0, 1, 9, 99, 750, 2000)]
    [0.0, 0.37, 0.785, 0.954, 0.988, 0.99]
    """
    return float(min(1 - (1 + step) ** -WARMUP_POWER, decay))


class AveragedWeights(WeightAveraging):
    """Keeps an average of weights and buffers, which is validated and kept in their place.

    Args:
        decay: of the average, once it is warmed up.
    """

    def __init__(self, decay: float) -> None:
        def update(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
            update_average(averaged, current, warmed_up_decay(int(num_averaged), decay))

        super().__init__(use_buffers=True, multi_avg_fn=update)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin the average where the training will be: the module gets there only after this."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)


@torch.no_grad()
def update_average(averaged: Sequence[Tensor], current: Sequence[Tensor], decay: float) -> None:
    """Move averages towards the current tensors, of any and pairwise equal shapes; those that are equal stay so.

    torch's own function interpolates, which leaves what does not change, frozen layers, bit for bit as it is. Counters,
    those of BatchNorm, it would average and cut off: they are copied.

    Args:
        averaged: of one type, as torch's ``AveragedModel`` groups them.
        current: likewise.
        decay: of the average.
    """
    if averaged[0].is_floating_point():
        get_ema_multi_avg_fn(decay)(averaged, current, 0)  # type: ignore[no-untyped-call]  # torch's has no types
        return
    for average, value in zip(averaged, current, strict=True):
        average.copy_(value)
