"""One phase of a training: it is held to its freeze plan, and to what its cached activations may change."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from graftline.features.cache import Features
from graftline.features.precision import MAX_CHANGE
from graftline.features.segment import Segment
from graftline.freezing.check import FreezeViolationError
from graftline.freezing.plan import FreezePlan, plan_from_depth
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit_directory import FitDirectory
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.setup import TrainingSetup

MakeSetup = Callable[..., TrainingSetup]


def head_plan(setup: TrainingSetup) -> FreezePlan:
    return plan_from_depth(setup.graft.network, 6, "", epochs=1, learning_rate=0.001)


def test_averaged_weights_leave_what_is_frozen_alone(make_setup: MakeSetup, tmp_path: Path) -> None:
    """Bit for bit, in a live training, where the whole network is averaged; the freeze check looks."""
    averaged = Recipe(batch_size=12, workers=0, ema_decay=0.9)
    setup = make_setup(recipe=averaged, features=Features(cache=False))
    graft = setup.graft
    for module in graft.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.num_batches_tracked is not None
            module.num_batches_tracked.fill_(101)
    plan = plan_from_depth(graft.network, 2, "", epochs=1, learning_rate=0.001)
    fit_phase(setup, plan, FitDirectory(tmp_path / "fit"), show_progress=False)
    counters = {
        int(value) for name, value in graft.network.state_dict().items() if name.endswith("num_batches_tracked")
    }
    assert counters == {101, 104}, "three steps of the layers that are trained"


def test_a_resume_is_held_to_the_freeze_check_of_the_first_start(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup, directory = make_setup(), FitDirectory(tmp_path / "fit")
    plan = head_plan(setup)
    fit_phase(setup, plan, directory, show_progress=False)
    other = make_setup()
    with torch.no_grad():
        next(other.graft.network.parameters())[0, 0, 0, 0] += 1
    with pytest.raises(FreezeViolationError, match=r"conv_stem\.weight is frozen, but not what it was"):
        fit_phase(other, plan, directory, resume=True, show_progress=False)


def test_each_run_is_held_to_its_freeze_check(make_setup: MakeSetup, tmp_path: Path) -> None:
    """What moves a frozen tensor during the fit ends the run, with the tensor's name."""
    setup = make_setup()

    class Nudging(FitEvents):
        def on_epoch(self, metrics: Metrics, step: int) -> None:  # noqa: ARG002 - the event's signature
            with torch.no_grad():
                setup.graft.network.get_parameter("conv_stem.weight")[0, 0, 0, 0] += 1

    with pytest.raises(FreezeViolationError, match=r"conv_stem\.weight is frozen, but not what it was"):
        fit_phase(setup, head_plan(setup), FitDirectory(tmp_path / "fit"), events=Nudging(), show_progress=False)


def test_each_run_is_held_to_gradients(make_setup: MakeSetup, tmp_path: Path) -> None:
    """A layer that is trained, but not on the way to the loss, ends the run in its first steps."""
    setup = make_setup(features=Features(cache=False))
    setup.graft.network.classifier.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))  # type: ignore[union-attr]
    plan = head_plan(setup)
    assert "classifier.unused" in plan.trainable
    with pytest.raises(FreezeViolationError, match=r"classifier\.unused is to be trained, but"):
        fit_phase(setup, plan, FitDirectory(tmp_path / "fit"), show_progress=False)
    sound = make_setup()
    counts = fit_phase(sound, head_plan(sound), FitDirectory(tmp_path / "ok"), show_progress=False).freeze_record
    assert counts["tensors_with_gradient"] == counts["trained_tensors"] == 2


def test_a_cache_that_changes_predictions_is_said(
    make_setup: MakeSetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = make_setup()
    plan = head_plan(setup)
    fit_phase(setup, plan, FitDirectory(tmp_path / "first"), show_progress=False)
    assert "change a predicted probability" not in "".join(capsys.readouterr())
    for file in (tmp_path / "cache").glob("*/*/activations.bin"):  # activations of something else, with right checksums
        shift_activations(file.parent)
    result = fit_phase(make_setup(), plan, FitDirectory(tmp_path / "second"), show_progress=False)
    assert result.cache_change is not None
    assert result.cache_change > MAX_CHANGE
    assert "train again with Features.precision=float32" in "".join(capsys.readouterr()).replace("\n", " ")


def shift_activations(directory: Path) -> None:
    """Make a segment of the cache hold other activations than the network gives."""
    segment = Segment(directory)
    assert segment.header is not None
    array = np.array(segment.array(), np.float32)
    for shard in range(segment.header.num_shards):
        rows = segment.header.rows(shard)
        segment.write(shard, array[rows.start : rows.stop] + 1)
