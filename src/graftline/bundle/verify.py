"""Replay a bundle's golden images and tell at which step, and by how much, this machine differs from its writer's.

Letters: M golden images, K classes, C channels of the network's input.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from graftline.bundle.engines import ENGINE_FILES, EngineName
from graftline.bundle.ensemble import (
    AnyPredictor,
    Ensemble,
    find_ensemble_damage,
    is_ensemble,
    read_ensemble,
    read_replay,
)
from graftline.bundle.golden import HASHED_STEPS, Replay, environment, read_golden, replay
from graftline.bundle.layout import GOLDEN_FOLDER, LOGITS, REFERENCES_FILE, find_damage, read_description
from graftline.bundle.predictor import Predictor, softmax
from graftline.errors import UserError, first_line
from graftline.execution import Execution

MAX_PROBABILITY_CHANGE = 1e-3

StepName = Literal["decode", "resize", "normalize", "network"]


@dataclass(frozen=True)
class StepDifference:
    """How one step here differs from the writer's, what differed before it included.

    Attributes:
        step: ``decode`` to pixels, ``resize`` and crop, ``normalize`` to the network's input, ``network`` to logits.
        num_differing: how many golden images differ in any value.
        largest: the largest absolute difference, in gray levels (decode, resize; of the pixels that the bundle keeps),
            in units of the network's input (normalize; likewise) or in logits (network). Infinite where the two cannot
            be compared.
    """

    step: StepName
    num_differing: int
    largest: float


@dataclass(frozen=True)
class Verification:
    """What a replay of golden images gave.

    Attributes:
        num_images: M.
        steps: one difference a step, in their order.
        largest_probability_change: of any class of any image that can be read here; infinite if the network cannot run.
        damaged: files of the bundle that are not what was saved.
        unreadable: why a golden image cannot be read here, by its file name.
        writer: environment of the bundle's writer, by name (``pillow``, ``onnxruntime``, ...).
        here: environment of this process.
        failure: why the network cannot run on the images; None if it can.
    """

    num_images: int
    steps: tuple[StepDifference, ...]
    largest_probability_change: float
    damaged: tuple[str, ...]
    unreadable: Mapping[str, str]
    writer: Mapping[str, str]
    here: Mapping[str, str]
    failure: str | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong, as one sentence; None if the bundle is whole and gives its writer's probabilities."""
        if self.damaged:
            return _name_damage(self.damaged)
        if self.failure is not None:
            return f"The network of this bundle cannot run on its golden images here ({self.failure})."
        if self.unreadable:
            name, reason = next(iter(self.unreadable.items()))
            return (
                f"{len(self.unreadable)} of {self.num_images} golden images cannot be read here (first: {name}, "
                f"{reason}): install the writer's version of Pillow, {self.writer['pillow']}."
            )
        if not self.largest_probability_change <= MAX_PROBABILITY_CHANGE:
            first = next((step.step for step in self.steps if step.num_differing), "network")
            return (
                f"This machine changes a probability by {self.largest_probability_change:.1g}, more than "
                f"{MAX_PROBABILITY_CHANGE:g}, and differs from the step '{first}' on: {self.changes()}."
            )
        return None

    def changes(self) -> str:
        """Say what the writer had otherwise."""
        pairs = ((name, self.writer.get(name, "unknown"), value) for name, value in self.here.items())
        changed = [f"{name} {value} (saved with {before})" for name, before, value in pairs if value != before]
        return ", ".join(changed) or "all versions are the writer's"


def verify_bundle(
    directory: Path,
    engine: EngineName = "onnx",
    execution: Execution = Execution(),  # noqa: B008 - immutable
) -> Verification:
    """Check a bundle's files and replay its golden images.

    Of an ensemble, these are those of each member; the steps are those of the worst one, and the probabilities those of
    all together.

    Args:
        directory: what ``save_bundle`` or ``save_ensemble`` wrote.
        engine: what runs the network, see ``Predictor.from_directory``.
        execution: on what device, with how many threads.

    Raises:
        UserError: no bundle is there, it cannot be loaded, it has no golden images, or a file that would be loaded
            to compute its answers is not what was saved.
    """
    if is_ensemble(directory):
        return _verify_ensemble(directory, engine, execution)
    damaged = find_damage(directory, read_description(directory))
    _refuse_changed_network(damaged, engine)
    try:
        predictor = Predictor.from_directory(directory, engine, execution, check=False)
    except Exception as error:  # whatever a description or a network's file that was changed leads to
        if not damaged:
            raise
        raise UserError(
            f"{directory / damaged[0]} is not what was saved ({first_line(error)}): copy or save the bundle again."
        ) from error
    return _replayed(predictor, directory, execution, damaged)


def _verify_ensemble(directory: Path, engine: EngineName, execution: Execution) -> Verification:
    damaged = find_ensemble_damage(directory)
    _refuse_changed_network(damaged, engine)
    folders = [directory / entry["folder"] for entry in read_ensemble(directory)["members"]]
    parts = [verify_bundle(folder, engine, execution) for folder in folders]
    change = float("inf")
    if not any(part.unreadable or part.failure for part in parts):
        change = _replay_ensemble(Ensemble.from_directory(directory, engine, execution, check=False), directory)
    by_step = zip(*(part.steps for part in parts), strict=True)
    worst = tuple(max(steps, key=lambda step: (step.largest, step.num_differing)) for steps in by_step)
    failure = next((part.failure for part in parts if part.failure is not None), None)
    return replace(
        parts[0],
        steps=worst,
        largest_probability_change=change,
        damaged=tuple(damaged),
        unreadable={name: reason for part in parts for name, reason in part.unreadable.items()},
        failure=failure,
    )


def _refuse_changed_network(damaged: Sequence[str], engine: EngineName) -> None:
    loaded = (*ENGINE_FILES[engine], REFERENCES_FILE)
    if any(Path(name).name in loaded for name in damaged):
        raise UserError(_name_damage(damaged))


def _name_damage(damaged: Sequence[str]) -> str:
    return f"{', '.join(damaged)} of this bundle is not what was saved: copy or save the bundle again."


def _replay_ensemble(ensemble: Ensemble, directory: Path) -> float:
    """Return by how much a probability of a golden image differs from the writer's."""
    files, expected, _ = read_replay(directory)
    ours = replace(ensemble, decoding=ensemble.decoding.of_our_own())
    return _largest(ours.predict(files), softmax(expected))


def find_problem(predictor: AnyPredictor, directory: Path, execution: Execution) -> str | None:
    """Replay golden images only where something here differs from the bundle's writer, which takes no time elsewhere.

    Args:
        predictor: loaded from the bundle.
        directory: the bundle; one of format 1 has no golden images, and no problem that can be found.
        execution: on what device the predictor runs.

    Returns:
        What is wrong with the predictor on this machine, as a sentence, or None.
    """
    if not (directory / GOLDEN_FOLDER).is_dir():
        return None
    if isinstance(predictor, Ensemble):
        writer = read_replay(directory)[2]
        return (
            None if writer == environment(execution.device) else _verify_ensemble(directory, "onnx", execution).problem
        )
    if read_golden(directory)[2] == environment(execution.device):
        return None
    return _replayed(predictor, directory, execution, []).problem


def _replayed(predictor: Predictor, directory: Path, execution: Execution, damaged: list[str]) -> Verification:
    files, expected, writer = read_golden(directory)
    failure: str | None = None

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal failure
        try:
            return predictor.engine(images, [LOGITS])[0]
        except Exception as error:  # ONNX Runtime and torch have many kinds for inputs of a wrong shape
            failure = first_line(error)
            return np.full((len(images), len(predictor.class_names)), np.nan, dtype=np.float32)

    actual = replay(files, predictor.preprocessing, run, predictor.decoding)
    readable = [number for number in range(len(files)) if number not in actual.unreadable]
    return Verification(
        num_images=len(files),
        steps=_compare(actual, expected, readable),
        largest_probability_change=_largest(
            *(softmax(predictor.calibration.apply(one.logits[readable])) for one in (actual, expected))
        ),
        damaged=tuple(damaged),
        unreadable={files[number].name: reason for number, reason in actual.unreadable.items()},
        writer=writer,
        here=environment(execution.device),
        failure=failure,
    )


def _compare(actual: Replay, expected: Replay, readable: list[int]) -> tuple[StepDifference, ...]:
    """Return how each step differs; an image that cannot be read differs at all."""
    differing = {
        step: sum(here.get(step) != there[step] for here, there in zip(actual.hashes, expected.hashes, strict=True))
        for step in HASHED_STEPS
    }
    same_logits = [number for number in readable if np.array_equal(actual.logits[number], expected.logits[number])]
    return (
        StepDifference("decode", differing["decode"], _largest(actual.decoded[readable], expected.decoded[readable])),
        StepDifference("resize", differing["resize"], _largest(actual.resized[readable], expected.resized[readable])),
        StepDifference(
            "normalize", differing["normalize"], _largest(_inputs(actual, readable), _inputs(expected, readable))
        ),
        StepDifference(
            "network",
            len(actual.hashes) - len(same_logits),
            _largest(actual.logits[readable], expected.logits[readable]),
        ),
    )


def _inputs(replayed: Replay, numbers: list[int]) -> np.ndarray:
    """Return the network's inputs (M, G, G, C) at the kept pixels: a level's value depends on its channel alone."""
    channels = np.arange(replayed.resized.shape[-1])
    inputs: np.ndarray = replayed.normalized[channels, replayed.resized[numbers]]
    return inputs


def _largest(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference; infinite where the shapes differ or there is a NaN."""
    if actual.shape != expected.shape:
        return float("inf")
    largest = float(np.abs(actual.astype(np.float64) - expected).max(initial=0.0))
    return float("inf") if np.isnan(largest) else largest
