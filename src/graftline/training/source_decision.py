"""The decision between cached activations and images: once per fit, and the same for all of its processes."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from graftline.errors import UserError
from graftline.features.cache import Activations, CacheFullError
from graftline.features.cut import Cut, UncuttableError, cut
from graftline.features.loader import fits_in_memory
from graftline.files import write_json
from graftline.freezing.depth import head_plan
from graftline.freezing.plan import FreezePlan
from graftline.training.activations import activation_requests, open_activations
from graftline.training.forecast import Forecast, Workload, decode_seconds, predict, time_parts
from graftline.training.kept_answer import KeptAnswer
from graftline.training.setup import TrainingSetup
from graftline.training.training_source import CachedSource, LiveSource, TrainingSource

T = TypeVar("T")

FORMAT = 2  # raise it when what is kept of a decision, or what it means, changes


@dataclass(frozen=True)
class SourceDecision:
    """Whether activations are cached, and why, as a part of a sentence; a resume keeps to it."""

    cached: bool
    why: str


def choose_source(setup: TrainingSetup, plan: FreezePlan, decision_file: Path | None = None) -> TrainingSource:
    """Train the tail on cached activations where that is possible and wanted, else the network on images.

    All processes of a training call this. They agree on the decision, which takes seconds; then each of them opens the
    activations, so that the frozen pass, which may take hours, goes on beside no open collective operation.

    Args:
        setup: of the training.
        plan: already applied to the network, which is in training mode.
        decision_file: keeps the decision, for further processes and for a resume. None: it is not kept.

    Raises:
        UserError: a training that began on cached activations is to go on, but there is no room for them any more.
    """
    setup = setup.for_plan(plan)
    try:
        parts = _cut(setup, plan)
    except UncuttableError as error:
        return LiveSource(setup, str(error))
    decision, is_earlier = _from_first(lambda: _read_or_decide(setup, plan, parts, decision_file))
    activations, refusal = _open(setup, plan, parts) if decision.cached else ([], None)
    if refusal is not None and is_earlier:
        raise UserError(
            f"The training began on cached activations, but {refusal}: raise Features.max_gb, or make room in "
            "Features.directory."
        )
    if setup.features.cache == "auto" and not is_earlier and refusal is None and setup.execution.rank == 0:
        _kept(setup, plan).write(decision.cached)
    if refusal is not None:
        decision = SourceDecision(cached=False, why=refusal)
    if decision_file is not None and not is_earlier and setup.execution.rank == 0:
        write_json(decision_file, asdict(decision))
    if not decision.cached:
        return LiveSource(setup, decision.why)
    return CachedSource(setup, plan, parts, activations, decision.why)


def head_is_live(setup: TrainingSetup) -> bool:
    """Tell whether a head alone would be trained on images: activations cannot be cached, or there is no room for all.

    Its plan is then applied to the network.
    """
    plan = head_plan(setup.graft.network)
    plan.apply(setup.graft.network)
    try:
        parts = _cut(setup, plan)
    except UncuttableError:
        return True
    return setup.features.predict_bytes(parts.width, _cached_images(setup)) > setup.features.store.max_bytes


def _cut(setup: TrainingSetup, plan: FreezePlan) -> Cut:
    """Cut the network, to which the plan is applied.

    Raises:
        UncuttableError: it cannot be cut, or is to run on images; the message says why.
    """
    if setup.features.cache is False:
        raise UncuttableError("Features.cache=False")
    if setup.recipe.mixes_images:
        raise UncuttableError("mixup and CutMix need the images")
    if setup.recipe.grad_checkpointing and not plan.only_head:
        raise UncuttableError("gradient checkpointing needs the whole network")
    preprocessing = setup.graft.preprocessing
    return cut(setup.graft.network, plan.trainable, preprocessing.image_size, preprocessing.channels)


def _read_or_decide(
    setup: TrainingSetup, plan: FreezePlan, parts: Cut, decision_file: Path | None
) -> tuple[SourceDecision, bool]:
    """Return the decision, and whether it was made earlier."""
    if decision_file is not None and decision_file.exists():
        return SourceDecision(**json.loads(decision_file.read_text(encoding="utf-8"))), True
    why = [parts.note]
    cached = True
    if setup.features.cache == "auto":
        before: bool | None = _kept(setup, plan).read()
        to_compute = setup.features.missing(activation_requests(setup, plan, parts))
        if to_compute == 0 and before is not False:
            why.append("computed earlier")
        elif before is not None:
            cached = before
            why.append("as an earlier training with these images and settings")
        else:
            try:
                predicted = forecast(setup, plan, parts, to_compute)
                cached, told = predicted.cached <= predicted.live, predicted.sentence()
            except torch.OutOfMemoryError:  # the pass takes more images at a time than a step
                cached, told = False, "the forecast takes more memory than the GPU has"
            why.append(told)
    return SourceDecision(cached, "; ".join(filter(None, why))), False


def _kept(setup: TrainingSetup, plan: FreezePlan) -> KeptAnswer:
    """Return whether an earlier training was on cached activations.

    Live training augments and cached does not, so that a stopwatch on a busy machine would else change the metrics of
    a training that is repeated.
    """
    depends_on = {
        "version": setup.version.digest,
        "images": [setup.version.num_images(split) for split in ("train", "validation")],
        "network": [setup.graft.network.pretrained_cfg["architecture"], dict(setup.graft.arguments)],  # type: ignore[index]  # a timm model has it
        "preprocessing": setup.graft.preprocessing.to_dict(),
        "trained": [sorted(plan.trainable), plan.epochs],
        "features": [setup.features.views, setup.features.precision],
        "execution": [setup.execution.device, setup.execution.world_size, setup.execution.num_threads],
        "format": FORMAT,
    }
    return KeptAnswer(setup.features, "sources", depends_on)


def forecast(setup: TrainingSetup, plan: FreezePlan, parts: Cut, to_compute: int) -> Forecast:
    """Time the parts of a network on a few images, and predict both ways of training.

    Args:
        setup: of the training.
        plan: which part is trained, and for how long.
        parts: the network, cut.
        to_compute: images, all views of them counted, whose activations are not there yet.
    """
    preprocessing = setup.graft.preprocessing
    step_images = setup.for_plan(plan).batch_size
    seconds = time_parts(parts, preprocessing.image_size, preprocessing.channels, setup.execution, step_images)
    train, validation = (setup.version.num_images(split) for split in ("train", "validation"))
    images = _cached_images(setup)
    cached_bytes = setup.features.predict_bytes(parts.width, images)
    kept = LiveSource(setup, "to be predicted").images_to_decode()
    work = Workload(
        train,
        validation,
        plan.epochs,
        to_compute,
        cached_bytes,
        in_memory=fits_in_memory(images * parts.width),
        decode=decode_seconds(setup.version.samples("train"), setup.execution),
        decoded_live=plan.epochs * (train + validation) if kept is None else kept,
    )
    return predict(seconds, work)


def _cached_images(setup: TrainingSetup) -> int:
    """Return of how many images activations are cached, all views of them counted."""
    train, validation = (setup.version.num_images(split) for split in ("train", "validation"))
    return max(1, setup.features.views) * train + validation


def _open(setup: TrainingSetup, plan: FreezePlan, parts: Cut) -> tuple[list[Activations], str | None]:
    """Open the activations; where a process finds no room for them, none uses them. Returns them, or why not."""
    activations, refusal = list[Activations](), None
    try:
        activations = open_activations(setup, plan, parts)
    except CacheFullError as error:
        refusal = str(error)
    refusal = next(filter(None, _from_all(refusal)), None)
    return ([] if refusal is not None else activations), refusal


def _from_first(make: Callable[[], T]) -> T:
    """Return what the first process makes. Before they train together, each process is its own first."""
    if not _at_work():
        return make()
    told: list[Any] = [make() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(told)
    value: T = told[0]
    return value


def _from_all(value: T) -> list[T]:
    """Return the values of all processes by rank; of this one alone before they train together."""
    if not _at_work():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _at_work() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
