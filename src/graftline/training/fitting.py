"""Fitting a network as a freeze plan says: its inputs, its optimizer, the fit, and the proof that frozen was frozen."""

import functools
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from graftline.augment.policy import Policy
from graftline.backbones.backbone import Graft
from graftline.data.version import DatasetVersion
from graftline.features.cache import Features
from graftline.features.precision import MAX_CHANGE
from graftline.files import write_json
from graftline.freezing.check import FreezeCheck
from graftline.freezing.plan import FreezePlan
from graftline.training.fit import FitHistory, fit, weight_decay_of
from graftline.training.groups import Layers
from graftline.training.module import GraftModule, Optimizer, Schedule
from graftline.training.progress import Metrics
from graftline.training.recipe import Recipe
from graftline.training.source import TrainingSource, choose_source

logger = logging.getLogger(__name__)

CONTRACT_FILE, INPUTS_FILE = "contract.json", "inputs.json"


@dataclass(frozen=True)
class PhaseResult:
    """What came of fitting a network: the network itself has the weights of the best epoch.

    Attributes:
        inputs: what was trained on what.
        fit: history, best epoch, seconds.
        contract: what was proven: counts and hashes, for the run.
        cache_change: by how much a predicted probability differs between cached activations and images; None where
            nothing is cached.
    """

    inputs: TrainingSource
    fit: FitHistory
    contract: dict[str, Any]
    cache_change: float | None


@dataclass(frozen=True)
class TrainingSetup:
    """All that is the same however much of the network is frozen.

    Attributes:
        version: the images; the splits ``train`` and ``validation`` are used.
        policy: augmentation of the training images.
        features: whether and how activations are cached.
        recipe: batch size, losses, patience.
        optimizer: ``functools.partial`` of a torch optimizer's class; ``lr=None``: as the freeze plan recommends.
        schedule: (step, total steps) → factor on the learning rate.
        make_trainer: ``functools.partial`` of ``pytorch_lightning.Trainer``; how many epochs is the plan's to say.
        seed: of order and augmentation.
    """

    version: DatasetVersion
    policy: Policy
    features: Features
    recipe: Recipe
    optimizer: Optimizer
    schedule: Schedule
    make_trainer: Callable[..., pl.Trainer]
    seed: int

    def run(
        self,
        graft: Graft,
        plan: FreezePlan,
        directory: Path,
        *,
        on_epoch: Callable[[Metrics, int], None],
        on_start: Callable[[Metrics], None] | None = None,
        on_source: Callable[[TrainingSource], None] | None = None,
        resume: bool = False,
        show_progress: bool = True,
    ) -> PhaseResult:
        """Train what the plan says; afterwards the network has the weights of the best epoch.

        Args:
            graft: network, preprocessing and weights.
            plan: which part is trained.
            directory: for the checkpoints and the contract.
            on_epoch: called on rank 0 with the metrics and the step after each epoch.
            on_start: called on rank 0 with the learning rates of the first step.
            on_source: called once it is known what is trained on what.
            resume: go on from the last checkpoint in ``directory``.
            show_progress: draw the progress bar.

        Raises:
            FreezeViolationError: a frozen tensor changed, or one that is to be trained got no gradient.
        """
        plan.apply(graft.network)
        contract = _take_contract(graft.network, plan, directory / CONTRACT_FILE, resume=resume)
        inputs = choose_source(
            graft, plan, self.version, self.policy, self.features, self.recipe, self.seed, directory / INPUTS_FILE
        )
        if on_source is not None:
            on_source(inputs)
        fitted = fit(
            self._module(graft, plan, inputs),
            functools.partial(self.make_trainer, max_epochs=plan.epochs),
            inputs.make_loaders,
            directory=directory,
            on_epoch=on_epoch,
            on_start=on_start,
            on_first_gradients=contract.check_gradients,
            patience=self.recipe.patience,
            ema_decay=self.recipe.ema_decay,
            resume=resume,
            threads=inputs.threads,
            show_progress=show_progress,
        )
        contract.check(graft.network)
        change = inputs.change() if inputs.change is not None else None
        if change is not None and change > MAX_CHANGE:
            logger.warning(
                f"Cached activations change a predicted probability by {change:.1e}, more than {MAX_CHANGE}: "
                "train again with features.precision=float32."
            )
        return PhaseResult(inputs, fitted, contract.record(), change)

    def _module(self, graft: Graft, plan: FreezePlan, inputs: TrainingSource) -> GraftModule:
        num_classes = len(self.version.class_names)
        optimizer = with_learning_rate(self.optimizer, plan.learning_rate)
        return GraftModule(
            inputs.network,
            optimizer=optimizer,
            schedule=self.schedule,
            weight_decay=weight_decay_of(optimizer),
            layers=Layers.of(graft.network),
            layer_decay=self.recipe.layer_decay,
            label_smoothing=self.recipe.label_smoothing,
            class_weights=self.recipe.class_weight_tensor(self.version.samples("train"), num_classes),
            use_sample_weights=self.recipe.sample_weights,
            mixer=self.recipe.mixer(num_classes),
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


def _take_contract(network: nn.Module, plan: FreezePlan, file: Path, *, resume: bool) -> FreezeCheck:
    """Take the contract before the first step; a resume is held to the one of the first start."""
    if resume and file.exists():
        contract = FreezeCheck.from_json(json.loads(file.read_text(encoding="utf-8")))
        contract.check(network)
        return contract
    contract = FreezeCheck.of(network, plan)
    write_json(file, contract.to_json())
    return contract
