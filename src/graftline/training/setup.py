"""What a training needs, however much of the network is frozen."""

import functools
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from graftline.augment.policy import Policy
from graftline.backbones.backbone import Graft
from graftline.data.image_memory import ImageMemory
from graftline.data.version import DatasetVersion
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.freezing.batchnorm import BatchNormStatistics
from graftline.freezing.evidence import too_few_to_choose
from graftline.freezing.plan import FreezePlan
from graftline.freezing.rates import layer_decay
from graftline.ray_cluster import NoCluster, RayCluster
from graftline.training.groups import Layers
from graftline.training.module import GraftModule, Optimizer, Schedule
from graftline.training.optimizers import takes_recommendation, with_learning_rate
from graftline.training.recipe import Recipe
from graftline.training.schedule import by_clock
from graftline.training.trainer import MakeTrainer, weight_decay_of


@dataclass(frozen=True)
class PassSetup:
    """What the frozen pass of a network over images needs.

    Attributes:
        graft: network, preprocessing and weights.
        version: the images.
        features: whether and how activations are cached.
        execution: where the pass runs.
        cluster: over which the pass is spread.
    """

    graft: Graft
    version: DatasetVersion
    features: Features
    execution: Execution
    cluster: NoCluster | RayCluster = field(default=NoCluster(), kw_only=True)


@dataclass(frozen=True)
class TrainingSetup(PassSetup):
    """All that is the same however much of the network is frozen; of the images, train and validation are used.

    Attributes:
        policy: augmentation of the training images.
        recipe: batch size, losses, patience.
        optimizer: ``functools.partial`` of a torch optimizer's class; ``lr=None``: what goes with the freeze plan's.
        schedule: (step, total steps) → factor on the learning rate.
        make_trainer: ``functools.partial`` of ``pytorch_lightning.Trainer``; how many epochs is the plan's to say.
        seed: of order, augmentation, dropout and the mixing of images.
        batchnorm: what happens to BatchNorm's statistics (`graftline.freezing.batchnorm`); that they are adapted is
            for ``prepare_statistics`` to do, before anything is frozen or tried.
        images: decoded, kept from one epoch and one fit to the next.
    """

    policy: Policy
    recipe: Recipe
    optimizer: Optimizer
    schedule: Schedule
    make_trainer: MakeTrainer
    seed: int
    batchnorm: BatchNormStatistics = "trained"
    images: ImageMemory = field(default_factory=ImageMemory, repr=False, compare=False)

    @property
    def batch_size(self) -> int:
        """Images per optimizer step and process, of a setup that ``for_plan`` returned or whose recipe says it."""
        assert self.recipe.batch_size is not None
        return self.recipe.batch_size

    @property
    def frozen_statistics(self) -> bool:
        """Whether BatchNorm's statistics are frozen in the layers that are trained, too."""
        return self.batchnorm == "frozen"

    @property
    def too_few_to_choose(self) -> str | None:
        """Why the validation images do not tell which epoch is the best; None if they do."""
        return too_few_to_choose(tuple(self.version.counts()["validation"].values()))

    def for_plan(self, plan: FreezePlan) -> "TrainingSetup":
        """Return the setup with what the recipe leaves to the depth of a plan."""
        recipe = self.recipe.for_depth(only_head=plan.only_head)
        if recipe.layer_decay is None:
            uniform = plan.only_head or not self.graft.weights.pretrained  # random layers have nothing to keep
            recipe = replace(recipe, layer_decay=1.0 if uniform else layer_decay(self.graft.network))
        return replace(self, recipe=recipe)

    def make_module(self, network: nn.Module, plan: FreezePlan) -> GraftModule:
        """Return what trains a network, the setup's own or a tail of it, as a plan says."""
        num_classes, recipe = len(self.version.class_names), self.for_plan(plan).recipe
        optimizer = with_learning_rate(self.optimizer, plan.learning_rate)
        return GraftModule(
            network,
            optimizer=optimizer,
            schedule=self.schedule if plan.seconds is None else by_clock(self.schedule, plan.seconds),
            weight_decay=weight_decay_of(optimizer),
            layers=Layers.of(self.graft.network, plan.head_factor if takes_recommendation(self.optimizer) else 1.0),
            layer_decay=1.0 if recipe.layer_decay is None else recipe.layer_decay,
            label_smoothing=recipe.label_smoothing,
            class_weights=recipe.class_weight_tensor(self.version.samples("train"), num_classes),
            use_sample_weights=recipe.sample_weights,
            mixer=recipe.mixer(num_classes),
            frozen_statistics=self.frozen_statistics,
            on_cpu=self.execution.device == "cpu",
        )


def identify(part: Any) -> Any:
    """Return what stands for a part of a setup where answers are kept for the same settings: its name and arguments.

    A lambda and a function in another one have no name by which a later process knows them: they match nothing kept.
    """
    if isinstance(part, functools.partial):
        return [identify(part.func), part.keywords]
    name = getattr(part, "__qualname__", "<")
    return repr(part) if "<" in name else f"{part.__module__}.{name}"
