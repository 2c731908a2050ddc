"""Trying a boundary: a fit as a freeze plan says, whose work is kept until it is known which one goes on."""

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Iterator, Sequence

import numpy as np
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

from graftline.augment.policy import CandidatePolicy
from graftline.backbones.layers import HEAD, group_names
from graftline.console import Advance, counted
from graftline.data.folds import assign_folds
from graftline.freezing.depth_search import IMAGES_OF_CLASS
from graftline.freezing.evidence import MOST_JUDGED, TRIAL_FOLDS, trial_fits
from graftline.freezing.measurement import BoundaryTrial, Floats, describe_boundary
from graftline.freezing.plan import FreezePlan
from graftline.freezing.rule import FreezeContext, FreezeDecision
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit_directory import FitDirectory
from graftline.training.image_seconds import decoding_seconds, seconds_per_image
from graftline.training.lower_rates import fit_at_lower_rates
from graftline.training.phase import fit_phase, load_best
from graftline.training.results import PhaseResult
from graftline.training.setup import TrainingSetup
from graftline.training.source_decision import head_is_live
from graftline.training.trainer import accumulated_batches, own_epochs
from graftline.training.training_source import TrainingSource
from graftline.training.validation_scores import score_validation


def make_freeze_context(setup: TrainingSetup, directory: FitDirectory, deadline: float | None = None) -> FreezeContext:
    """Return what a freeze rule decides by, for a training that is still to begin.

    Args:
        setup: of the training.
        directory: for the checkpoints of trials.
        deadline: moment of ``time.monotonic`` at which the training is to end; None: there is no limit.
    """
    return FreezeContext(
        setup.graft.network,
        setup.version.num_images("train"),
        setup.graft.weights.pretrained,
        own_epochs(setup.make_trainer),
        step_images=_step_images(dataclasses.replace(setup, recipe=setup.recipe.for_depth(only_head=False))),
        processes=setup.execution.world_size,
        validation_counts=tuple(setup.version.counts()["validation"].values()),
        try_boundary=Trials(setup, directory),
        try_in_folds=FoldTrials(setup, directory),
        seconds_left=None if deadline is None else lambda: deadline - time.monotonic(),
        image_seconds=functools.partial(seconds_per_image, setup),
        decoding_seconds=functools.partial(decoding_seconds, setup),
        head_is_live=functools.partial(head_is_live, setup),
    )


def keep_trials(decision: FreezeDecision, directory: FitDirectory) -> None:
    """Make the trials that a decision builds on its first phases, and remove what the others left.

    Args:
        decision: ``decision.tried`` names their folders, in order.
        directory: of the training.
    """
    for number, name in enumerate(decision.tried):
        phase, files = directory.phase(number), sorted((directory.trial / name).iterdir())
        phase.path.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.replace(phase.path / file.name)
    shutil.rmtree(directory.trial, ignore_errors=True)


class Trials:
    """Fits a network as plans say; after each, weights and random numbers are as if nothing had been tried.

    The fits are done by this process alone, on one device, and judged by 2,000 validation images at most.

    Args:
        setup: of the training.
        directory: for the checkpoints, which ``keep_trials`` keeps or removes.
        class_weights: (K,) what an image of each class counts for when losses are calibrated; None: all the same.
        fold: which of several judges the fits, for people, as in "fold 1 of 3"; empty where there is one.
    """

    def __init__(
        self, setup: TrainingSetup, directory: FitDirectory, class_weights: Floats | None = None, fold: str = ""
    ) -> None:
        features = setup.features
        if isinstance(setup.policy, CandidatePolicy):  # nothing happens to an image: its views would be the same
            features = dataclasses.replace(features, views=0)
        self._setup = dataclasses.replace(setup, policy=setup.policy.without_candidates(), features=features)
        self._directory = directory
        self._class_weights = class_weights
        self._told = f", {fold}" if fold else ""

    def __call__(
        self, plan: FreezePlan, start: BoundaryTrial | None = None, max_images: int | None = None
    ) -> BoundaryTrial:
        """Fit the network.

        Args:
            plan: what is trained, and for how many epochs.
            start: the trial whose weights the fit begins with; None: the network's own.
            max_images: of the training split that are used, each class in proportion, but ten of each at least, as far
                as there are; None: all.

        Returns:
            What came of it.

        Raises:
            DivergenceError: the training diverged.
            TooLittleMemoryError: it takes more memory than the GPU has.
        """
        network, part = self._setup.graft.network, self._setup.version.part(validation=MOST_JUDGED)
        if max_images is not None:
            least = min(IMAGES_OF_CLASS, max_images // len(part.class_names))
            part = part.part(least_of_class=least, train=max_images)
        setup = dataclasses.replace(self._setup, version=part)
        boundary = [*group_names(network), HEAD][plan.frozen_groups]
        name = f"{plan.frozen_groups:02}" + ("" if start is None else f"-from-{start.folder}")
        began, chain = time.perf_counter(), [] if start is None else start.chain()
        folders, description = (
            [self._folder(one.folder) for one in chain],
            f"Epochs, {describe_boundary(boundary)}{self._told}",
        )
        with fitted(setup, self._emptied(name), plan, description, folders) as fit:
            seconds = time.perf_counter() - began
            losses, hits = score_validation(fit.setup, fit.source, self._class_weights)
        result = fit.result
        return BoundaryTrial(
            boundary=boundary,
            plan=plan,
            trained_parameters=plan.describe(network)["trained_parameters"],
            losses=losses,
            hits=hits,
            cached=result.cache_change is not None,
            pass_seconds=seconds - result.history.seconds,
            fit_seconds=result.history.seconds,
            images=setup.version.num_images("train"),
            trained_images=result.history.steps * _step_images(fit.setup.for_plan(plan)) + _trained_images(start),
            folder=name,
            start=start,
        )

    def _folder(self, name: str) -> FitDirectory:
        return FitDirectory(self._directory.trial / name)

    def _emptied(self, name: str) -> FitDirectory:
        """Return the folder of a trial; what a killed one has left there goes."""
        folder = self._folder(name)
        shutil.rmtree(folder.path, ignore_errors=True)
        return folder


class FoldTrials:
    """Fits a network as plans say, once without each fold of the training and validation images, which judges that fit.

    Where folds are large (`trial_fits`), there is one such fit.

    Args:
        setup: of the training.
        directory: for the checkpoints, which ``keep_trials`` removes.
    """

    def __init__(self, setup: TrainingSetup, directory: FitDirectory) -> None:
        self._setup, self._directory = setup, directory
        self._of_folds: dict[str, list[BoundaryTrial]] = {}

    @functools.cached_property
    def _trials(self) -> list[Trials]:
        """What fits without each fold: divided when it is asked for, since most trainings do not."""
        version, splits = self._setup.version, ("train", "validation")
        labels = np.concatenate([version.samples(split).labels for split in splits])
        digests = [sha256 for split in splits for sha256 in version.samples(split).sha256]
        folds = assign_folds(labels, [group for split in splits for group in version.groups(split)], TRIAL_FOLDS)
        trials = []
        one_will_do = trial_fits(len(folds)) == 1  # the largest: groups may make them unequal
        judging = [int(np.bincount(folds).argmax())] if one_will_do else np.unique(folds).tolist()
        for number, fold in enumerate(judging, start=1):
            sides = np.where(folds == fold, "validation", "train").tolist()
            divided = version.divided(dict(zip(digests, sides, strict=True)))
            folder = FitDirectory(self._directory.trial / f"fold-{fold + 1}")
            told = "" if one_will_do else f"fold {number} of {len(judging)}"
            trials.append(Trials(dataclasses.replace(self._setup, version=divided), folder, fold=told))
        return trials

    def __call__(
        self, plan: FreezePlan, start: BoundaryTrial | None = None, max_images: int | None = None
    ) -> BoundaryTrial:
        """Fit the network once for each fold that judges; the arguments are those of ``Trials``.

        Returns:
            What came of it for their images, fold by fold.

        Raises:
            DivergenceError: a training diverged.
            TooLittleMemoryError: one takes more memory than the GPU has.
        """
        if max_images is not None and max_images >= self._setup.version.num_images("train"):
            max_images = None  # all that are not left out, as for a head that is fitted to all
        starts = [None] * len(self._trials) if start is None else self._of_folds[start.folder]
        found = [trial(plan, begun, max_images) for trial, begun in zip(self._trials, starts, strict=True)]
        self._of_folds[found[0].folder] = found
        return dataclasses.replace(
            found[0],
            losses=np.concatenate([one.losses for one in found]),
            hits=np.concatenate([one.hits for one in found]),
            pass_seconds=sum(one.pass_seconds for one in found),
            fit_seconds=sum(one.fit_seconds for one in found),
            trained_images=sum(one.trained_images for one in found),
            start=start,
        )


@dataclasses.dataclass(frozen=True)
class TrialFit:
    """A fit of a network that is then as it was: by which setup, on what, and what came of it."""

    setup: TrainingSetup
    source: TrainingSource
    result: PhaseResult


@contextlib.contextmanager
def fitted(
    setup: TrainingSetup,
    directory: FitDirectory,
    plan: FreezePlan,
    description: str,
    earlier: Sequence[FitDirectory] = (),
) -> Iterator[TrialFit]:
    """Fit a network as a plan says, for the block only: weights and random numbers are then as they were.

    Args:
        setup: of the training. The fit is done by this process alone, on one device.
        directory: for the checkpoints, which stay.
        plan: what is trained, and for how many epochs.
        description: of the bar of the epochs.
        earlier: fits whose weights it begins with, in order.

    Yields:
        The fit. During the block the network has the weights of the best epoch.

    Raises:
        DivergenceError: it diverged.
        TooLittleMemoryError: it takes more memory than the GPU has.
    """
    alone = functools.partial(setup.make_trainer, devices=1, num_nodes=1, strategy="auto")
    execution = dataclasses.replace(setup.execution, rank=0, world_size=1, num_nodes=1)
    setup = dataclasses.replace(setup, make_trainer=alone, execution=execution)
    with (
        _weights_kept(setup.graft.network),
        isolate_rng(include_cuda=execution.is_cuda),
        _TrialEvents(description, plan.epochs) as events,
    ):
        for one in earlier:
            load_best(setup.graft.network, one)
        fit_once = functools.partial(fit_phase, setup, directory=directory, events=events, show_progress=False)
        result = fit_at_lower_rates(fit_once, setup, plan, directory, resume=False)
        yield TrialFit(setup, events.source, result)


def _step_images(setup: TrainingSetup) -> int:
    """Return how many images a process passes for an optimizer step."""
    return setup.batch_size * accumulated_batches(setup.make_trainer)


def _trained_images(start: BoundaryTrial | None) -> int:
    """Return how many images a trial's start was trained on, where that was more than the head."""
    return 0 if start is None or start.plan.only_head else start.trained_images


class _TrialEvents(FitEvents, contextlib.ExitStack):
    """Shows a bar of the epochs, which begins when that of the frozen pass is gone, and keeps the source."""

    source: TrainingSource

    def __init__(self, description: str, epochs: int) -> None:
        super().__init__()
        self._description, self._epochs = description, epochs
        self._advance: Advance | None = None

    def on_source(self, source: TrainingSource) -> None:
        self.source = source
        self._advance = self.enter_context(counted(self._description, self._epochs))

    def on_epoch(self, metrics: Metrics, step: int) -> None:  # noqa: ARG002 - the event's signature
        assert self._advance is not None
        self._advance(1)


@contextlib.contextmanager
def _weights_kept(network: nn.Module) -> Iterator[None]:
    """Give a network the weights and buffers again that it had before the block."""
    initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try:
        yield
    finally:
        network.load_state_dict(initial)
