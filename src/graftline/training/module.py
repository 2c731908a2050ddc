"""The one LightningModule: it trains a whole network on images, or its tail on cached activations.

Letters: B batch, C channels, H height, W width, F numbers per image that a tail takes, K classes, T temperatures.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from timm.data import Mixup
from torch import Tensor, nn

from graftline.data.loaders import Batch, draw_batches
from graftline.freezing.plan import set_frozen_eval
from graftline.training.groups import Layers, learning_rates, make_optimizer
from graftline.training.memory_format import avoid_copies, memory_format
from graftline.training.running_mean import WeightedMean
from graftline.training.sharding import ShardedStrategy, shard
from graftline.training.temperatures import TEMPERATURES, losses_by_temperature

Optimizer = Callable[..., torch.optim.Optimizer]
Schedule = Callable[[int, int], float]

# What the loss of an auxiliary head counts beside the network's own (Szegedy et al. 2014, arXiv 1409.4842, section 5).
AUX_LOSS_WEIGHT = 0.3


@dataclass(frozen=True)
class StepOutput:
    """What one batch gave: logits (B, K), the loss per image (B,) and the weight of each image in the mean (B,).

    The losses hold those of the auxiliary heads, where the network has any and is in training mode.
    """

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
        network: the whole network, inputs (B, C, H, W), or its tail, inputs (B, …); outputs (B, K) logits, in training
            mode maybe a tuple of them, its own first, then those of its auxiliary heads. Parameters that need no
            gradient are frozen: their modules stay in eval mode and they get into no optimizer group.
        optimizer: takes parameter groups (``functools.partial`` of a torch optimizer's class).
        schedule: (step, total steps) → factor on the learning rate.
        weight_decay: for weights; biases and norms have none.
        layers: of the whole network: a tail does not know them. None: those of ``network``, if it is a timm network.
        layer_decay: factor on the learning rate from each layer group to the next one down.
        label_smoothing: 0 to 1.
        class_weights: (K,), by which the loss of an image of each class is weighed; None: all alike.
        use_sample_weights: weigh each image's loss by the batch's ``weight``.
        mixer: mixes the images of a training batch and soft labels (B, K) that it does not smooth; None: none does.
        frozen_statistics: BatchNorm stays in eval mode where its weights are trained, too.
        on_cpu: whether it is trained on a CPU.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: Optimizer,
        schedule: Schedule,
        weight_decay: float,
        layers: Layers | None = None,
        layer_decay: float = 1.0,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        use_sample_weights: bool = False,
        mixer: Mixup | None = None,
        frozen_statistics: bool = False,
        on_cpu: bool = True,
    ) -> None:
        super().__init__()
        self.memory_format = memory_format(network, on_cpu=on_cpu)
        self.network = network.to(memory_format=self.memory_format)
        avoid_copies(self.network)
        self._whole: list[nn.Module] | None = None  # in a list, in which torch does not see it
        self._optimizer = optimizer
        self._schedule = schedule
        self._weight_decay = weight_decay
        whole = hasattr(network, "get_classifier")
        self._layers = layers if layers is not None else Layers.of(network) if whole else Layers()
        self._layer_decay = layer_decay
        self._label_smoothing = label_smoothing
        self._use_sample_weights = use_sample_weights
        self._mixer = mixer
        self._frozen_statistics = frozen_statistics
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.trained = WeightedMean("loss")
        self.validated = WeightedMean("loss", calibrated_loss=len(TEMPERATURES))
        self.unweighted = WeightedMean("accuracy", log_loss=len(TEMPERATURES))

    def configure_model(self) -> None:
        """Divide the parameters of a copy among the processes, where the strategy does so."""
        if isinstance(self.trainer.strategy, ShardedStrategy) and self._whole is None:
            self._whole = [self.network]
            self.memory_format = torch.contiguous_format  # fully_shard takes no other (torch 2.14.1)
            self.network = copy.deepcopy(self.network).to(memory_format=self.memory_format)
            shard(self.network, self.trainer.strategy.device_mesh["data_parallel"])

    def take_back(self) -> None:
        """Have the network that was given again, if a copy of it was trained in its place."""
        if self._whole is not None:
            (self.network,) = self._whole
            self._whole = None

    def train(self, mode: bool = True) -> "GraftModule":
        """Switch to training mode; what is frozen stays in eval mode."""
        super().train(mode)
        set_frozen_eval(self.network, frozen_statistics=self._frozen_statistics)
        return self

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits (B, K) of ``inputs`` (B, C, H, W) or (B, F), or a tuple with the auxiliary heads'."""
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=self.memory_format)
        outputs: Tensor | tuple[Tensor, ...] = self.network(inputs)
        return outputs

    def step(self, inputs: Tensor, target: Tensor, weights: Tensor, *, smoothing: float) -> StepOutput:
        """Do the forward pass and the loss per image.

        Args:
            inputs: images (B, C, H, W) or activations (B, F).
            target: labels (B,), or soft labels (B, K).
            weights: (B,), of the images in the mean.
            smoothing: share of the label that is spread over all classes.
        """
        outputs = self(inputs)
        logits, *sides = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = self._losses(logits, target, smoothing)
        for side in sides if self.training else ():  # a tail, being traced, returns them in evaluation too
            losses = losses + AUX_LOSS_WEIGHT * self._losses(side, target, smoothing)
        return StepOutput(logits, losses, weights if self._use_sample_weights else torch.ones_like(weights))

    def _losses(self, logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
        """Return the loss per image (B,), times the weight of its own class: torch's weighs the smoothed share, too.

        That of a blend is the blend of the losses that both images would have.
        """
        by_class, weights = self.class_weights, torch.ones((), device=logits.device)
        if isinstance(by_class, Tensor) and target.ndim == 1:
            weights = by_class[target]
        elif isinstance(by_class, Tensor):
            weights = (target * by_class).sum(dim=1)
            target = target * by_class / weights.clamp_min(1e-12)[:, None]
        return weights * F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of a training batch, such that the mean over all processes is that over a step's images."""
        inputs, target, weights = batch["image"], batch["label"], batch["weight"]
        if self._mixer is not None and len(inputs) > 1:
            inputs, target, weights = self._mixed(self._mixer, inputs, target, weights)
        step = self.step(inputs, target, weights, smoothing=self._label_smoothing)
        self.trained.add(len(inputs), loss=step.loss.detach() * len(inputs))
        return step.loss * self._share(batch_index, len(inputs))

    def _share(self, batch_index: int, size: int) -> float:
        """Return how large a batch is beside the mean of those that all processes have in this step."""
        if self.trainer.world_size == 1:
            return 1.0
        loader: Any = self.trainer.train_dataloader
        return size * self.trainer.world_size / draw_batches(loader).step_images(batch_index)

    def _mixed(self, mixer: Mixup, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mixed images (B, C, H, W), their soft labels (B, K) and weights (B,).

        A label has the share of its image in the mix, times that image's weight: one of no weight teaches nothing. The
        last image of an odd number has no partner and stays as it is.
        """
        shares = F.one_hot(labels, mixer.num_classes).float()  # (B, K)
        if self._use_sample_weights:
            shares = shares * weights[:, None]
        even = len(inputs) // 2 * 2
        mixed, blended = mixer(inputs[:even], shares[:even])
        if even < len(inputs):
            mixed, blended = torch.cat([mixed, inputs[even:]]), torch.cat([blended, shares[even:]])
        weights = blended.sum(dim=1)
        return mixed, blended / weights.clamp_min(1e-12)[:, None], weights

    def on_train_epoch_start(self) -> None:
        """Begin a new mean of the training loss."""
        self.trained.reset()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Count a validation batch in; images that only pad the processes to equal length weigh nothing."""
        labels = batch["label"]
        step = self.step(batch["image"], labels, batch["weight"], smoothing=0.0)
        real = self._is_real(batch_index, len(labels))
        weights, correct = step.weights.float() * real, (step.logits.argmax(dim=1) == labels).float()
        plain = losses_by_temperature(step.logits, labels)
        by_class = self.class_weights if isinstance(self.class_weights, Tensor) else None
        weighed = plain if by_class is None else plain * by_class[labels][:, None]
        self.count(step.losses.float(), weighed, plain, correct, weights, real)

    def on_validation_epoch_end(self) -> None:
        """Log what validation gave, over all processes: the loss, what it is once it is calibrated, the accuracy.

        Where the loss is a weighed one, also the calibrated log loss, in which each image counts as one.
        """
        means = {**self.validated.reduced(), **self.unweighted.reduced()}
        if self.class_weights is None and not self._use_sample_weights:
            del means["log_loss"]
        for name, value in means.items():
            self.log(f"val/{name}", value.min().float(), prog_bar=True, sync_dist=True)  # the same everywhere
        self.validated.reset()
        self.unweighted.reset()

    def count(
        self, losses: Tensor, weighed: Tensor, plain: Tensor, correct: Tensor, weights: Tensor, real: Tensor
    ) -> None:
        """Count B images in.

        Args:
            losses: (B,) of the training, by their classes' weights.
            weighed: (B, T) at each of the temperatures.
            plain: (B, T) without the classes' weights.
            correct: (B,) whether an image is right.
            weights: (B,) of the images in the mean loss.
            real: (B,) 0 for one that stands in twice.
        """
        self.validated.add(weights.sum(), loss=(losses * weights).sum(), calibrated_loss=weights @ weighed)
        self.unweighted.add(real.sum(), log_loss=real @ plain, accuracy=(correct * real).sum())

    def _is_real(self, batch_index: int, size: int) -> Tensor:
        """Return (B,) ones, and zeros for the images that stand in twice to pad the processes to equal length."""
        if self.trainer.world_size == 1:
            return torch.ones(size, device=self.device)
        loader: Any = self.trainer.val_dataloaders
        batches = draw_batches(loader)
        first = batch_index * batches.batch_size
        padding = [batches.sampler.is_padding(position) for position in range(first, first + size)]
        return 1.0 - torch.tensor(padding, dtype=torch.float32, device=self.device)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer on what is trained, and the schedule per step."""
        optimizer = make_optimizer(
            self.network,
            self._optimizer,
            weight_decay=self._weight_decay,
            layers=self._layers,
            layer_decay=self._layer_decay,
        )
        total_steps = max(1, int(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._schedule(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rates that the next step takes: ``lr/LAYER`` → rate; ``lr/all`` where they are one."""
        return learning_rates(self.trainer.optimizers[0])
