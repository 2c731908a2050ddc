"""The recipe: what a training does beside network, optimizer, schedule and trainer."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor

from graftline.data.folds import check_fold
from graftline.data.version import Samples
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.freezing.depth import DEEP_BATCH, HEAD_BATCH

CPU_WORKERS, MAX_WORKERS = 2, 6  # loader processes; 6 need less than 1 GB of shared memory for images of 224 px


@dataclass(frozen=True)
class Recipe:
    """How to train (Hydra target of the node ``train``).

    Attributes:
        batch_size: images per optimizer step and process; None: ``HEAD_BATCH`` where only the head is trained, else
            ``DEEP_BATCH``.
        workers: loader processes that decode and augment, of each process that trains; None: 2 on a CPU, whose cores
            train meanwhile, and on a GPU one for each further core, 6 at most (`loader_processes`).
        label_smoothing: share of the label spread over all classes (Szegedy et al. 2016, section 7), 0 to 1.
        class_weights: weigh each class by the inverse of its frequency in the training split.
        sample_weights: weigh each image by the data set's ``weight`` column.
        mixup_alpha: Beta parameter of mixup (Zhang et al. 2018); 0: off.
        cutmix_alpha: Beta parameter of CutMix (Yun et al. 2019); 0: off.
        ema_decay: decay per step of the averaged weights that are validated and kept, warmed up from 0; None: off.
        layer_decay: factor on the learning rate from each layer group to the next one down, the first of them below the
            head (Clark et al. 2020, section 3.1), above 0; 1: off; None: as suits the network
            (`graftline.freezing.rates.layer_decay`). The head's rate is the freeze plan's.
        patience: epochs without a better validation loss before training stops; None: never.
        checkpoint_minutes: after which a checkpoint is written within an epoch, too, above 0; None: at its end only.
        grad_checkpointing: compute the activations of a network's blocks again in the backward pass, for less memory.
        compile: run what is trained through torch.compile.
        fold: which of how many parts of the training images is left out, such as ``2/5``; None: none.
        depth_seed: of the trials of a freeze rule that finds the depth by such, for whoever makes them, at least 0 and
            below 2^32; None: the training's own.
        resume: id of an MLflow run whose training is to go on, for whoever tracks it.
    """

    batch_size: int | None = None
    workers: int | None = None
    label_smoothing: float = 0.0
    class_weights: bool = False
    sample_weights: bool = False
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    ema_decay: float | None = None
    layer_decay: float | None = None
    patience: int | None = 10
    checkpoint_minutes: float | None = None
    grad_checkpointing: bool = False
    compile: bool = False
    fold: str | None = None
    depth_seed: int | None = None
    resume: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("label_smoothing", 0, 1),
            ("ema_decay", 0, 1),
            ("batch_size", 1, None),
            ("workers", 0, None),
            ("mixup_alpha", 0, None),
            ("cutmix_alpha", 0, None),
            ("patience", 0, None),
            ("depth_seed", 0, 2**32),
        ):
            value = getattr(self, name)
            if value is not None and not (low <= value and (high is None or value < high)):  # also catches NaN
                bound = f"at least {low}" + (f" and below {high}" if high is not None else "")
                raise UserError(f"Recipe.{name} is {value}, it must be {bound}.")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if math.isinf(getattr(self, name)):
                raise UserError(f"Recipe.{name} is inf, it must be finite: 0.2 is usual for mixup, 1.0 for CutMix.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"Recipe.layer_decay is {self.layer_decay}, it must be above 0 and at most 1 (1: off).")
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:  # also catches NaN
            raise UserError(f"Recipe.checkpoint_minutes is {self.checkpoint_minutes}, it must be above 0.")
        if self.fold is not None:
            check_fold(self.fold)
        if self.mixes_images and self.batch_size is not None and self.batch_size % 2:
            raise UserError("Recipe.batch_size must be even with mixup or CutMix: images are mixed in pairs.")

    def for_depth(self, *, only_head: bool) -> "Recipe":
        """Return the recipe with the number of images per step that suits the depth, where none is given."""
        size = HEAD_BATCH if only_head else DEEP_BATCH
        return self if self.batch_size is not None else replace(self, batch_size=size)

    def loader_processes(self, execution: Execution) -> int:
        """Return how many processes decode and augment for one that trains."""
        if self.workers is not None:
            return self.workers
        if execution.device == "cpu":
            return CPU_WORKERS
        return min(MAX_WORKERS, max(1, execution.num_threads // execution.local_world_size - 1))

    @property
    def mixes_images(self) -> bool:
        """Whether images of a batch are mixed, so that training needs the images themselves."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    @property
    def weighs_images(self) -> bool:
        """Whether some images count more than others, by their class or each by itself."""
        return self.class_weights or self.sample_weights

    def mixer(self, num_classes: int) -> Mixup | None:
        """Return timm's mixup/CutMix for batches (B, C, H, W) and soft labels (B, K); None when off."""
        if not self.mixes_images:
            return None
        return Mixup(
            mixup_alpha=self.mixup_alpha,
            cutmix_alpha=self.cutmix_alpha,
            label_smoothing=0.0,  # the loss smooths
            num_classes=num_classes,
            multi_label=True,  # timm's word for soft labels, which hold the images' weights
        )

    def class_weight_tensor(self, samples: Samples, num_classes: int) -> Tensor | None:
        """Return (K,) weights with mean 1 over the training images, N / (K · count); None when off."""
        if not self.class_weights:
            return None
        counts = np.bincount(samples.labels, minlength=num_classes)
        return torch.from_numpy(len(samples.labels) / (num_classes * np.maximum(counts, 1))).float()
