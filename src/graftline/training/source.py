"""What is trained on what: the whole network on images, or its tail on activations that are computed once."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from graftline.augment.policy import Augment, EvalTransform, Policy
from graftline.backbones.backbone import Graft
from graftline.data.loaders import Batch, make_loader
from graftline.data.version import DatasetVersion, Samples
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.features.cache import (
    ActivationRequest,
    Activations,
    CacheFullError,
    Features,
    ImageBatcher,
    activation_loader,
)
from graftline.features.cut import Cut, UncuttableError, cut
from graftline.features.engine import make_engine
from graftline.features.key import trunk_key, view_key
from graftline.features.loader import fits_in_memory
from graftline.features.precision import largest_change
from graftline.features.trace import mode_kept
from graftline.files import write_json
from graftline.freezing.plan import FreezePlan, depth_in_words
from graftline.training.forecast import Forecast, Work, forecast
from graftline.training.recipe import Recipe

CHECKED_IMAGES = 8  # on which the trained tail is asked whether the cache has served it well

Loaders = tuple[DataLoader[Batch], DataLoader[Batch]]


@dataclass(frozen=True)
class TrainingSource:
    """A network, or the part of it that is trained, and what it is trained on.

    Attributes:
        network: takes what the loaders give.
        make_loaders: (rank, number of processes) → training and validation loader.
        sentence: what was decided and why.
        augmented: whether the training images are augmented.
        threads: of torch during the fit; None: as many as it likes. The steps of a head are too small to be shared:
            with two threads, on two cores that others used too, they were 15 times slower.
        held: entries of the activation cache, which nobody removes while they are held.
        change: tells by how much a predicted probability is another from cached activations than from the images; None
            where nothing is cached.
    """

    network: nn.Module
    make_loaders: Callable[[int, int], Loaders]
    sentence: str
    augmented: bool
    threads: int | None = None
    held: Sequence[Activations] = ()
    change: Callable[[], float] | None = None


@dataclass(frozen=True)
class SourceDecision:
    """Whether activations are cached, and why; the processes of a training agree on it, and a resume keeps to it."""

    cached: bool
    why: str


def choose_source(
    graft: Graft,
    plan: FreezePlan,
    version: DatasetVersion,
    policy: Policy,
    features: Features,
    recipe: Recipe,
    seed: int,
    decision_file: Path | None = None,
) -> TrainingSource:
    """Train the tail on cached activations where that is possible and wanted, else the network on images.

    Args:
        graft: network, preprocessing and weights.
        plan: already applied to the network, which is in training mode.
        version: the images; the splits ``train`` and ``validation`` are used.
        policy: augmentation of the training images.
        features: whether to cache, and how many augmented views.
        recipe: batch size, workers, mixing.
        seed: of augmentation and order.
        decision_file: file that keeps the choice, for further processes and for a resume. None: nowhere.

    Raises:
        UserError: a training that began on cached activations is to go on, but there is no room for them any more.
    """
    ways = _Ways(graft, plan, version, policy, features, recipe, seed)
    if features.cache is False:
        return ways.live("features=live")
    if recipe.mixes_images:
        return ways.live("mixup and CutMix need the images")
    try:
        parts = cut(graft.network, plan.trainable, graft.preprocessing.image_size, graft.preprocessing.channels)
    except UncuttableError as error:
        return ways.live(str(error))
    choice, held = _agree(decision_file, lambda: ways.choose(parts))
    if not choice.cached:
        return ways.live(choice.why)
    try:
        return ways.cached(parts, held or ways.open(parts), choice.why)
    except CacheFullError as error:
        raise UserError(
            f"The training began on cached activations, but {error}: raise Features.max_gb, or make room "
            "(make cache lists what there is)."
        ) from error


def _agree(
    decision_file: Path | None, choose: Callable[[], tuple[SourceDecision, list[Activations]]]
) -> tuple[SourceDecision, list[Activations]]:
    """Choose, once for all processes of a training.

    Those that are started for the first fit find the decision file; further fits find them all at
    work, and the first one tells.
    """
    at_work = torch.distributed.is_available() and torch.distributed.is_initialized()
    told: list[Any] = [None]
    held: list[Activations] = []
    if not at_work or torch.distributed.get_rank() == 0:
        if decision_file is not None and decision_file.exists():
            told = [SourceDecision(**json.loads(decision_file.read_text(encoding="utf-8")))]
        else:
            told[0], held = choose()
            if decision_file is not None:
                write_json(decision_file, asdict(told[0]))
    if at_work:
        torch.distributed.broadcast_object_list(told)
    return told[0], held


@dataclass(frozen=True)
class _Ways:
    """Both ways of training a network; the fields are the arguments of ``choose_source``."""

    graft: Graft
    plan: FreezePlan
    version: DatasetVersion
    policy: Policy
    features: Features
    recipe: Recipe
    seed: int

    @cached_property
    def train(self) -> Samples:
        """The training images."""
        return self.version.samples("train")

    @cached_property
    def validation(self) -> Samples:
        """The validation images."""
        return self.version.samples("validation")

    def choose(self, parts: Cut) -> tuple[SourceDecision, list[Activations]]:
        """Choose between both by predicted time if that is wanted, and by the room for the activations."""
        why = parts.note
        if self.features.cache == "auto":
            predicted = self._predict(parts)
            why = "; ".join(filter(None, (why, predicted.sentence())))
            if predicted.live < predicted.cached:
                return SourceDecision(cached=False, why=why), []
        try:
            return SourceDecision(cached=True, why=why), self.open(parts)
        except CacheFullError as error:
            return SourceDecision(cached=False, why=str(error)), []

    def _predict(self, parts: Cut) -> Forecast:
        train, validation = len(self.train.paths), len(self.validation.paths)
        views = max(1, self.features.views)
        images = views * train + validation
        cached_bytes = self.features.predict_bytes(parts.width, images)
        in_memory = fits_in_memory(images * parts.width)
        to_compute = self.features.missing(self._jobs(self._key(parts)))
        work = Work(train, validation, self.plan.epochs, to_compute, cached_bytes, in_memory)
        return forecast(parts, work, self.graft.preprocessing.image_size, self.graft.preprocessing.channels)

    def live(self, why: str) -> TrainingSource:
        """Train the whole network on images."""
        augment, plain = (
            Augment(self.policy, self.graft.preprocessing, self.seed),
            EvalTransform(self.graft.preprocessing),
        )

        def make_loaders(rank: int, world_size: int) -> Loaders:
            loader = partial(
                make_loader,
                batch_size=self.recipe.batch_size,
                seed=self.seed,
                workers=self.recipe.workers,
                rank=rank,
                world_size=world_size,
            )
            training = loader(self.train, augment, shuffle=True, drop_last=self._leaves_one(world_size))
            return training, loader(self.validation, plain, shuffle=False)

        augmented = self.policy.crop is not None or any(self.policy.transforms.values())
        images = f"images augmented anew each time ({self.policy.name})" if augmented else "images as they are"
        sentence = f"The whole network runs at every step, on {images}: {why}."
        return TrainingSource(self.graft.network, make_loaders, sentence, augmented)

    def open(self, parts: Cut) -> list[Activations]:
        """Get the activations of validation and training images, computed now or earlier; the frozen pass is here.

        Raises:
            CacheFullError: there is no room for them.
        """
        key = self._key(parts)
        engine = partial(make_engine, parts.trunk, self.features.store.trunk_file(key), execution=Execution.local())
        return self.features.open(self._jobs(key), engine, parts.tail, parts.width)

    def cached(self, parts: Cut, held: list[Activations], why: str) -> TrainingSource:
        """Train the tail on activations."""
        validation, *views = [entry.array for entry in held]

        def make_loaders(rank: int, world_size: int) -> Loaders:
            loader = partial(
                activation_loader,
                batch_size=self.recipe.batch_size,
                seed=self.seed,
                rank=rank,
                world_size=world_size,
            )
            training = loader(views, self.train, shuffle=True, drop_last=self._leaves_one(world_size))
            return training, loader([validation], self.validation, shuffle=False)

        def change() -> float:
            images = ImageBatcher(self._jobs(self._key(parts))[0])(range(min(CHECKED_IMAGES, len(validation))))
            with mode_kept(parts.trunk), torch.inference_mode():
                exact = parts.trunk.eval()(images)
            kept = validation.take(np.arange(len(exact)), axis=0)
            return largest_change(parts.tail, exact, torch.from_numpy(kept).float())

        seen = f"{self.features.views} augmented views of each image"
        if self.features.views == 0:
            seen = f"each image once, without augmentation (features.views=3 would use the policy {self.policy.name})"
        what = "head" if self.plan.only_head else "tail"
        because = f" ({why})" if why else ""
        sentence = f"Trained on cached activations{because}: {seen}; only the {what} runs at each step."
        threads = 1 if self.plan.only_head else None
        return TrainingSource(parts.tail, make_loaders, sentence, self.features.views > 0, threads, held, change)

    def _jobs(self, key: dict[str, Any]) -> list[ActivationRequest]:
        """Return what is to be computed: the validation images, then the training images, plain or in views."""
        plain, augment = (
            EvalTransform(self.graft.preprocessing),
            Augment(self.policy, self.graft.preprocessing, self.seed),
        )
        jobs = [ActivationRequest(self.validation, plain, 0, key)]
        if self.features.views == 0:
            return [*jobs, ActivationRequest(self.train, plain, 0, key)]
        return jobs + [
            ActivationRequest(self.train, augment, view, {**key, **view_key(self.policy, self.seed, view)})
            for view in range(self.features.views)
        ]

    def _key(self, parts: Cut) -> dict[str, Any]:
        """Return all that an activation depends on, beside image and augmentation."""
        network: Any = self.graft.network
        frozen = self.plan.frozen_groups
        boundary = depth_in_words(network, frozen) if frozen > 0 else "by names"
        architecture = network.pretrained_cfg["architecture"]
        return trunk_key(parts, self.graft.preprocessing, architecture, dict(self.graft.arguments), boundary)

    def _leaves_one(self, world_size: int) -> bool:
        """Tell whether an epoch's last batch would be a single image, of which BatchNorm can make no statistics."""
        share = len(self.train.paths) // world_size
        return share > 1 and share % self.recipe.batch_size == 1
