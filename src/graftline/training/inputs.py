"""What is trained on what: the whole network on images, or its tail on activations that are computed once."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader

from graftline.augment.policy import Augment, Evaluate, Policy
from graftline.backbones.backbone import Graft
from graftline.data.loaders import Batch, make_loader
from graftline.data.version import DatasetVersion, Samples
from graftline.features.cache import Activations, CacheFullError, Features, Job, activation_loader
from graftline.features.cut import Cut, UncuttableError, cut
from graftline.features.engine import make_engine
from graftline.features.loader import fits_in_memory
from graftline.files import digest, write_json
from graftline.freezing.contract import hash_of
from graftline.freezing.plan import FreezePlan, depth_in_words
from graftline.training.forecast import Forecast, Work, forecast
from graftline.training.recipe import Recipe

# what of an activation's key an exported trunk depends on
TRUNK_KEYS = ("network", "trunk", "weights", "timm", "preprocessing")


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
        held: entries of the activation cache, which nobody removes while they are held.
    """

    network: nn.Module
    make_loaders: Callable[[int, int], tuple[DataLoader[Batch], DataLoader[Batch]]]
    sentence: str
    augmented: bool
    threads: int | None = None
    held: Sequence[Activations] = ()


def choose_inputs(
    graft: Graft,
    plan: FreezePlan,
    version: DatasetVersion,
    policy: Policy,
    features: Features,
    recipe: Recipe,
    seed: int,
    memo: Path | None = None,
) -> Inputs:
    """Train the tail on cached activations where that gives the same as training on images, else on images.

    Args:
        graft: network, preprocessing and weights.
        plan: already applied to the network, which is in training mode.
        version: the images; the splits ``train`` and ``validation`` are used.
        policy: augmentation of the training images.
        features: whether to cache, and how many augmented views.
        recipe: batch size, workers, mixing.
        seed: of augmentation and order.
        memo: file that keeps a choice by predicted time, for further processes and for a resume. None: nowhere.
    """
    live = partial(_live, graft, version, policy, recipe, seed)
    if features.cache is False:
        return live("features=live")
    if recipe.mixes_images:
        return live("mixup and CutMix need the images")
    size, channels = graft.preprocessing.image_size, graft.preprocessing.channels
    try:
        parts = cut(graft.network, plan.trainable, size, channels)
    except UncuttableError as error:
        return live(str(error))
    why = ""
    if features.cache == "auto":
        predicted = _predict(parts, graft, plan, version, features, memo)
        why = f" ({predicted.sentence()})"
        if predicted.live < predicted.cached:
            return live(predicted.sentence())
    try:
        return _cached(parts, why, graft, plan, version, policy, features, recipe, seed)
    except CacheFullError as error:
        return live(str(error))


def _predict(
    parts: Cut, graft: Graft, plan: FreezePlan, version: DatasetVersion, features: Features, memo: Path | None
) -> Forecast:
    """Predict how long both ways will take, once for all processes of a training.

    Those that are started for the first fit find the memo; later fits find them all at work, and the first one tells.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return _remembered(parts, graft, plan, version, features, memo)
    told: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        told = [_remembered(parts, graft, plan, version, features, memo)]
    torch.distributed.broadcast_object_list(told)
    predicted: Forecast = told[0]
    return predicted


def _remembered(
    parts: Cut, graft: Graft, plan: FreezePlan, version: DatasetVersion, features: Features, memo: Path | None
) -> Forecast:
    """Return what the memo holds, or predict and note it there."""
    if memo is not None and memo.exists():
        return Forecast(**json.loads(memo.read_text(encoding="utf-8")))
    train, validation = len(version.samples("train").paths), len(version.samples("validation").paths)
    views = max(1, features.views)
    images = views * train + validation
    cached_bytes = features.predict_bytes(parts.width, images)
    work = Work(train, validation, plan.epochs, views, cached_bytes, fits_in_memory(images * parts.width))
    predicted = forecast(parts, work, graft.preprocessing.image_size, graft.preprocessing.channels)
    if memo is not None:
        write_json(memo, asdict(predicted))
    return predicted


def _live(graft: Graft, version: DatasetVersion, policy: Policy, recipe: Recipe, seed: int, why: str) -> Inputs:
    train, validation = version.samples("train"), version.samples("validation")
    transform, plain = Augment(policy, graft.preprocessing, seed), Evaluate(graft.preprocessing)

    def make_loaders(rank: int, world_size: int) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
        loader = partial(
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
    images = f"images augmented anew each time ({policy.name})" if augmented else "images as they are"
    sentence = f"The whole network runs at every step, on {images}: {why}."
    return Inputs(graft.network, make_loaders, sentence, augmented)


def _cached(
    parts: Cut,
    why: str,
    graft: Graft,
    plan: FreezePlan,
    version: DatasetVersion,
    policy: Policy,
    features: Features,
    recipe: Recipe,
    seed: int,
) -> Inputs:
    train, validation = version.samples("train"), version.samples("validation")
    plain, augment = Evaluate(graft.preprocessing), Augment(policy, graft.preprocessing, seed)
    key = _key(graft, plan, parts, version)
    jobs = [Job(validation, plain, 0, {**key, "split": "validation"})]
    if features.views == 0:
        jobs.append(Job(train, plain, 0, {**key, "split": "train"}))
    drawn = {
        "crop": repr(policy.crop),
        "transforms": [[name, repr(t)] for name, t in policy.transforms.items()],  # their order matters
        "seed": seed,
    }
    jobs += [
        Job(train, augment, view, {**key, "split": "train", "view": view, **drawn}) for view in range(features.views)
    ]
    exported = features.store.trunk_file({name: key[name] for name in TRUNK_KEYS})
    entries = features.open(jobs, partial(make_engine, parts.trunk, exported), parts.tail, parts.width)
    plain_validation, *views = [entry.array for entry in entries]

    def make_loaders(rank: int, world_size: int) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
        loader = partial(activation_loader, batch_size=recipe.batch_size, seed=seed, rank=rank, world_size=world_size)
        return (
            loader(views, train, shuffle=True, drop_last=_lone_last(train, recipe, world_size)),
            loader([plain_validation], validation, shuffle=False),
        )

    seen = f"{features.views} augmented views of each image"
    if features.views == 0:
        seen = f"each image once, without augmentation (features.views=3 would use the policy {policy.name})"
    what = "head" if plan.only_head else "tail"
    sentence = f"Trained on cached activations{why}: {seen}; only the {what} runs at each step."
    return Inputs(
        parts.tail,
        make_loaders,
        sentence,
        augmented=features.views > 0,
        threads=1 if plan.only_head else None,
        held=entries,
    )


def _lone_last(samples: Samples, recipe: Recipe, world_size: int) -> bool:
    """Tell whether the last batch of an epoch would be a single image, of which BatchNorm can make no statistics."""
    share = len(samples.paths) // world_size
    return share > 1 and share % recipe.batch_size == 1


def _key(graft: Graft, plan: FreezePlan, parts: Cut, version: DatasetVersion) -> dict[str, Any]:
    """Return all that an activation depends on, beside split and augmentation."""
    network: Any = graft.network
    return {
        "dataset": version.digest,
        "network": [network.pretrained_cfg["architecture"], dict(graft.arguments)],
        "boundary": depth_in_words(network, plan.frozen_groups),
        "trunk": digest(parts.trunk.code),
        "weights": digest({name: hash_of(tensor) for name, tensor in parts.trunk.state_dict().items()}),
        "timm": timm.__version__,
        "preprocessing": asdict(graft.preprocessing),
    }
