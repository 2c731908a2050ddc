"""The one LightningModule: it trains a whole network on images, or its tail on cached activations.

Letters: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from timm.data import Mixup
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection, SumMetric

from graftline.data.loaders import Batch
from graftline.freezing.plan import hold_frozen

Optimiser = Callable[..., torch.optim.Optimizer]
Schedule = Callable[[int, int], float]


@dataclass(frozen=True)
class Step:
    """What one batch gave: logits (B, K), the loss per image (B,) and the weight of each image in the mean (B,)."""

    logits: Tensor
    losses: Tensor
    weights: Tensor

    @property
    def loss(self) -> Tensor:
        """The weighted mean of the losses."""
        return (self.losses * self.weights).sum() / self.weights.sum().clamp_min(1e-12)


class GraftModule(pl.LightningModule):
    """Trains what is not frozen.

    Args:
        network: the whole network, inputs (B, C, H, W), or its tail, inputs (B, …); outputs (B, K) logits. Parameters
            that need no gradient are frozen: their modules stay in eval mode and they get into no optimiser group.
        optimiser: takes parameter groups (``functools.partial`` of a torch optimiser's class).
        schedule: (step, total steps) → factor on the learning rate.
        weight_decay: for weights; biases and norms have none.
        label_smoothing: 0 to 1.
        class_weights: (K,), or None.
        use_sample_weights: weigh each image's loss by the batch's ``weight``.
        mixer: mixes the images of a training batch, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimiser: Optimiser,
        schedule: Schedule,
        weight_decay: float,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        use_sample_weights: bool = False,
        mixer: Mixup | None = None,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self._optimiser = optimiser
        self._schedule = schedule
        self._weight_decay = weight_decay
        self._label_smoothing = label_smoothing
        self._use_sample_weights = use_sample_weights
        self._mixer = mixer
        self.register_buffer("class_weights", class_weights, persistent=False)
        # "disable": a loss that is no number shall be seen. Sums, as a MeanMetric drops the weights with it.
        names = ("loss", "correct", "weight")
        sums: dict[str, Metric | MetricCollection] = {name: SumMetric(nan_strategy="disable") for name in names}
        self.validation = MetricCollection(sums, compute_groups=False)

    def train(self, mode: bool = True) -> "GraftModule":
        """Switch to training mode; what is frozen stays in eval mode."""
        super().train(mode)
        hold_frozen(self.network)
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(inputs)
        return logits

    def step(self, inputs: Tensor, target: Tensor, weights: Tensor, *, smoothing: float) -> Step:
        """Do the forward pass and the loss per image; ``target`` holds labels (B,) or soft labels (B, K)."""
        logits = self(inputs)
        class_weights = self.class_weights if isinstance(self.class_weights, Tensor) else None
        losses = F.cross_entropy(logits, target, weight=class_weights, label_smoothing=smoothing, reduction="none")
        return Step(logits, losses, weights if self._use_sample_weights else torch.ones_like(weights))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Return the loss of a training batch."""
        inputs, target, smoothing = batch["image"], batch["label"], self._label_smoothing
        if self._mixer is not None and len(inputs) % 2 == 0:
            inputs, target = self._mixer(inputs, target)
            smoothing = 0.0  # the mixer's soft labels are smoothed already
        step = self.step(inputs, target, batch["weight"], smoothing=smoothing)
        self.log(
            "train/loss", step.loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(inputs), sync_dist=True
        )
        return step.loss

    def on_validation_epoch_start(self) -> None:
        """Count in float32, even where the network is in half precision."""
        self.validation.set_dtype(torch.float32)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Count a validation batch in; images that only pad the processes to equal length weigh nothing."""
        step = self.step(batch["image"], batch["label"], batch["weight"], smoothing=0.0)
        real = step.weights.float() * self._is_real(batch_index, len(batch["label"]))
        correct = (step.logits.argmax(dim=1) == batch["label"]).float()
        self.count(step.losses.float(), correct, real)

    def on_validation_epoch_end(self) -> None:
        """Log what validation gave, over all processes."""
        for name, value in self.means().items():
            self.log(f"val/{name}", value, prog_bar=True, sync_dist=True)
        self.validation.reset()

    def count(self, losses: Tensor, correct: Tensor, weights: Tensor) -> None:
        """Count images in: their losses, whether they are right, and what they weigh, (B,) each."""
        self.validation["loss"].update(losses * weights)
        self.validation["correct"].update(correct * weights)
        self.validation["weight"].update(weights)

    def means(self) -> dict[str, Tensor]:
        """Return weighted loss and accuracy of all images counted, by all processes."""
        sums = self.validation.compute()
        return {"loss": sums["loss"] / sums["weight"], "accuracy": sums["correct"] / sums["weight"]}

    def _is_real(self, batch_index: int, size: int) -> Tensor:
        """Return (B,) ones, and zeros for the images that stand in twice to pad the processes to equal length."""
        loader: Any = self.trainer.val_dataloaders
        first = batch_index * loader.batch_size
        padding = [loader.sampler.is_padding(position) for position in range(first, first + size)]
        return 1.0 - torch.tensor(padding, dtype=torch.float32, device=self.device)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimiser on what is trained, and the schedule per step."""
        groups = param_groups_weight_decay(self.network, self._weight_decay, no_weight_decay_list=self._undecayed())
        optimiser = self._optimiser(groups)
        total_steps = max(1, int(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: self._schedule(step, total_steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _undecayed(self) -> set[str]:
        """Return the names of the parameters that the architecture itself wants without weight decay."""
        names = getattr(self.network, "no_weight_decay", None)
        return set(names()) if callable(names) else set()
