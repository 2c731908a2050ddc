"""What a training needs, however much of the network is frozen."""

import functools
from dataclasses import dataclass, replace

from torch import nn

from graftline.augment.policy import Policy
from graftline.backbones.backbone import Graft
from graftline.data.version import DatasetVersion
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.freezing.plan import FreezePlan
from graftline.training.groups import Layers
from graftline.training.module import GraftModule, Optimizer, Schedule
from graftline.training.recipe import Recipe
from graftline.training.trainer import MakeTrainer, weight_decay_of


@dataclass(frozen=True)
class TrainingSetup:
    """All that is the same however much of the network is frozen.

    Attributes:
        graft: network, preprocessing and weights.
        version: the images; the splits ``train`` and ``validation`` are used.
        policy: augmentation of the training images.
        features: whether and how activations are cached.
        recipe: batch size, losses, patience.
        optimizer: ``functools.partial`` of a torch optimizer's class; ``lr=None``: as the freeze plan recommends.
        schedule: (step, total steps) → factor on the learning rate.
        make_trainer: ``functools.partial`` of ``pytorch_lightning.Trainer``; how many epochs is the plan's to say.
        execution: where ``make_trainer``'s trainers run.
        seed: of order, augmentation, dropout and the mixing of images.
    """

    graft: Graft
    version: DatasetVersion
    policy: Policy
    features: Features
    recipe: Recipe
    optimizer: Optimizer
    schedule: Schedule
    make_trainer: MakeTrainer
    execution: Execution
    seed: int

    @property
    def batch_size(self) -> int:
        """Images per optimizer step and process, of a setup that ``for_plan`` returned or whose recipe says it."""
        assert self.recipe.batch_size is not None
        return self.recipe.batch_size

    def for_plan(self, plan: FreezePlan) -> "TrainingSetup":
        """Return the setup with what the recipe leaves to the depth of a plan."""
        return replace(self, recipe=self.recipe.for_depth(only_head=plan.only_head))

    def make_module(self, network: nn.Module, plan: FreezePlan) -> GraftModule:
        """Return what trains a network, the setup's own or a tail of it, as a plan says."""
        num_classes = len(self.version.class_names)
        optimizer = with_learning_rate(self.optimizer, plan.learning_rate)
        return GraftModule(
            network,
            optimizer=optimizer,
            schedule=self.schedule,
            weight_decay=weight_decay_of(optimizer),
            layers=Layers.of(self.graft.network),
            layer_decay=self.recipe.layer_decay,
            label_smoothing=self.recipe.label_smoothing,
            class_weights=self.recipe.class_weight_tensor(self.version.samples("train"), num_classes),
            use_sample_weights=self.recipe.sample_weights,
            mixer=self.recipe.mixer(num_classes),
            on_cpu=self.execution.device == "cpu",
        )


def with_learning_rate(optimizer: Optimizer, learning_rate: float) -> Optimizer:
    """Return the optimizer with the recommended learning rate where it has none of its own.

    >>> import torch
    >>> adamw = functools.partial(torch.optim.AdamW, lr=None)
    >>> with_learning_rate(adamw, 0.5).keywords, with_learning_rate(functools.partial(adamw, lr=0.1), 0.5).keywords
    ({'lr': 0.5}, {'lr': 0.1})
    """
    has_none = isinstance(optimizer, functools.partial) and optimizer.keywords.get("lr", 0) is None
    return functools.partial(optimizer, lr=learning_rate) if has_none else optimizer
