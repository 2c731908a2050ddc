"""What of the images is computed once: the activations of the frozen part, and how they are asked for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from graftline.augment.policy import Augment, EvalTransform
from graftline.data.version import Samples
from graftline.features.cache import ActivationRequest, Activations
from graftline.features.cut import Cut
from graftline.features.engine import Engine, make_engine
from graftline.features.key import trunk_key, view_key
from graftline.features.remote_gpus import find_gpus, spread_over_gpus
from graftline.features.remote_pass import spread_over
from graftline.freezing.plan import FreezePlan, depth_in_words
from graftline.ray_cluster import RayCluster
from graftline.training.setup import PassSetup, TrainingSetup


def open_activations(setup: TrainingSetup, plan: FreezePlan, parts: Cut) -> list[Activations]:
    """Return the activations that ``activation_requests`` asks for, computed now or earlier; the frozen pass is here.

    Raises:
        CacheFullError: there is no room for them.
    """
    return setup.features.open(
        activation_requests(setup, plan, parts), engine_maker(setup, plan, parts), parts.tail, parts.width
    )


def open_plain(setup: PassSetup, plan: FreezePlan, parts: Cut, samples: Samples) -> Activations:
    """Return the activations of images that are not augmented, computed now or earlier.

    Raises:
        CacheFullError: there is no room for them.
    """
    request = ActivationRequest(
        samples, EvalTransform(setup.graft.preprocessing), 0, activation_key(setup, plan, parts)
    )
    (kept,) = setup.features.open([request], engine_maker(setup, plan, parts), parts.tail, parts.width)
    return kept


def activation_requests(setup: TrainingSetup, plan: FreezePlan, parts: Cut) -> list[ActivationRequest]:
    """Return what is to be computed: the validation images, then the training images, plain or in views."""
    augment, plain = transforms(setup)
    train, validation = setup.version.samples("train"), setup.version.samples("validation")
    key = activation_key(setup, plan, parts)
    requests = [ActivationRequest(validation, plain, 0, key)]
    if setup.features.views == 0:
        return [*requests, ActivationRequest(train, plain, 0, key)]
    return requests + [
        ActivationRequest(train, augment, view, {**key, **view_key(setup.policy, setup.seed, view)})
        for view in range(setup.features.views)
    ]


def engine_maker(setup: PassSetup, plan: FreezePlan, parts: Cut) -> Callable[[Tensor], Engine]:
    """Return what prepares the trunk for the frozen pass, from its first images (B, C, H, W)."""
    exported = setup.features.store.trunk_file(activation_key(setup, plan, parts))
    execution = setup.execution
    if torch.distributed.is_available() and torch.distributed.is_initialized():  # all processes fill the cache together
        execution = replace(execution, threads=max(1, execution.num_threads // execution.local_world_size))

    def make(images: Tensor) -> Engine:
        if isinstance(setup.cluster, RayCluster) and (gpus := find_gpus(setup.cluster, execution)) is not None:
            return spread_over_gpus(setup.cluster, gpus, parts.trunk, images, parts.width)
        engine = make_engine(parts.trunk, exported, images, execution)
        if not isinstance(setup.cluster, RayCluster):
            return engine
        return spread_over(setup.cluster, engine, exported, parts.width)

    return make


def activation_key(setup: PassSetup, plan: FreezePlan, parts: Cut) -> dict[str, Any]:
    """Return all that an activation depends on, beside the image and its augmentation."""
    network: Any = setup.graft.network
    boundary = depth_in_words(network, plan.frozen_groups) if plan.frozen_groups > 0 else "by names"
    architecture = network.pretrained_cfg["architecture"]
    arguments = dict(setup.graft.arguments)
    return trunk_key(parts, setup.graft.preprocessing, architecture, arguments, boundary, setup.version.decoding)


def transforms(setup: TrainingSetup) -> tuple[Augment, EvalTransform]:
    """Return what is done to training images, and to all others."""
    preprocessing = setup.graft.preprocessing
    return Augment(setup.policy, preprocessing, setup.seed), EvalTransform(preprocessing)
