"""What is trained on what: the whole network on images, or its tail on activations that are computed once."""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import timm
from torch import nn
from torch.utils.data import DataLoader

from graftline.augment.policy import Augment, Evaluate, Policy
from graftline.backbones.backbone import Graft
from graftline.data.loaders import Batch, make_loader
from graftline.data.version import DatasetVersion, Samples
from graftline.features.cache import Features, activation_loader
from graftline.features.cut import Cut, UncuttableError, cut
from graftline.features.engine import make_engine
from graftline.freezing.plan import FreezePlan
from graftline.training.recipe import Recipe


@dataclass(frozen=True)
class Inputs:
    """A network, or the part of it that is trained, and what it is trained on.

    Attributes:
        network: takes what the loaders give.
        make_loaders: (rank, number of processes) → training and validation loader.
        sentence: what was decided and why.
        augmented: whether the training images are augmented.
        threads: of torch during the fit; None: as many as it likes. The steps of a head are too small to be shared:
            with two threads, on two cores that others used too, they were 15 times slower.
    """

    network: nn.Module
    make_loaders: Callable[[int, int], tuple[DataLoader[Batch], DataLoader[Batch]]]
    sentence: str
    augmented: bool
    threads: int | None = None


def choose_inputs(
    graft: Graft,
    plan: FreezePlan,
    version: DatasetVersion,
    policy: Policy,
    features: Features,
    recipe: Recipe,
    seed: int,
) -> Inputs:
    """Train on cached activations where that gives the same as training on images, else on images.

    Args:
        graft: network, preprocessing and weights.
        plan: already applied to the network.
        version: the images; the splits ``train`` and ``validation`` are used.
        policy: augmentation of the training images.
        features: whether to cache, and how many augmented views.
        recipe: batch size, workers, mixing.
        seed: of augmentation and order.
    """
    if not features.cache:
        return _live(graft, version, policy, recipe, seed, "features=live")
    if not plan.only_head:
        return _live(graft, version, policy, recipe, seed, "more than the head is trained")
    if recipe.mixes_images:
        return _live(graft, version, policy, recipe, seed, "mixup and CutMix need the images")
    try:
        parts = cut(graft.network, plan.trainable, graft.preprocessing.image_size, graft.preprocessing.channels)
    except UncuttableError as error:
        return _live(graft, version, policy, recipe, seed, f"this network cannot be cut, {error}")
    return _cached(parts, graft, version, policy, features, recipe, seed)


def _live(graft: Graft, version: DatasetVersion, policy: Policy, recipe: Recipe, seed: int, why: str) -> Inputs:
    train, validation = version.samples("train"), version.samples("validation")
    transform, plain = Augment(policy, graft.preprocessing, seed), Evaluate(graft.preprocessing)

    def make_loaders(rank: int, world_size: int) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
        loader = functools.partial(
            make_loader,
            batch_size=recipe.batch_size,
            seed=seed,
            workers=recipe.workers,
            rank=rank,
            world_size=world_size,
        )
        return (
            loader(train, transform, shuffle=True, drop_last=_lone_last(train, recipe, world_size)),
            loader(validation, plain, shuffle=False),
        )

    augmented = policy.crop is not None or any(policy.transforms.values())
    return Inputs(graft.network, make_loaders, f"The whole network runs at every step: {why}.", augmented)


def _cached(
    parts: Cut,
    graft: Graft,
    version: DatasetVersion,
    policy: Policy,
    features: Features,
    recipe: Recipe,
    seed: int,
) -> Inputs:
    train, validation = version.samples("train"), version.samples("validation")
    plain = Evaluate(graft.preprocessing)
    key = _key(graft, version)
    jobs: list[Any] = [(validation, plain, 0, {**key, "split": "validation"})]
    if features.views == 0:
        jobs.append((train, plain, 0, {**key, "split": "train"}))
    augment = Augment(policy, graft.preprocessing, seed)
    drawn = {
        "crop": repr(policy.crop),
        "transforms": {name: repr(t) for name, t in policy.transforms.items()},
        "seed": seed,
    }
    jobs += [(train, augment, view, {**key, "split": "train", "view": view, **drawn}) for view in range(features.views)]
    preprocessing = graft.preprocessing
    file = features.trunk_file({name: key[name] for name in ("network", "weights", "timm", "preprocessing")})
    engine, runs_on = make_engine(parts.trunk, file, preprocessing.image_size, preprocessing.channels)
    plain_validation, *views = features.activations(engine, jobs, workers=recipe.workers)

    def make_loaders(rank: int, world_size: int) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
        loader = functools.partial(
            activation_loader, batch_size=recipe.batch_size, seed=seed, rank=rank, world_size=world_size
        )
        return (
            loader(views, train, shuffle=True, drop_last=_lone_last(train, recipe, world_size)),
            loader([plain_validation], validation, shuffle=False),
        )

    seen = f"{features.views} augmented views of each image"
    if features.views == 0:
        seen = f"each image once, without augmentation (features.views=3 would use the policy {policy.name})"
    sentence = f"The frozen trunk ran once, on {runs_on}: {seen}; only the head runs at each step."
    return Inputs(parts.tail, make_loaders, sentence, augmented=features.views > 0, threads=1)


def _lone_last(samples: Samples, recipe: Recipe, world_size: int) -> bool:
    """Tell whether the last batch of an epoch would be a single image, of which BatchNorm can make no statistics."""
    share = len(samples.paths) // world_size
    return share > 1 and share % recipe.batch_size == 1


def _key(graft: Graft, version: DatasetVersion) -> dict[str, Any]:
    """Return all that an activation depends on, beside split and augmentation."""
    network: Any = graft.network
    return {
        "dataset": version.digest,
        "network": [network.pretrained_cfg["architecture"], dict(graft.arguments)],
        "weights": graft.weights.digest,
        "timm": timm.__version__,
        "preprocessing": asdict(graft.preprocessing),
    }
