"""A training in phases: what each trains, what a resume keeps, and whose weights are left in the end."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch

from graftline.augment.policy import Policy
from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Graft
from graftline.backbones.weights import Weights
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.features.cache import Features
from graftline.features.precision import MAX_CHANGE
from graftline.features.segment import Segment
from graftline.freezing.check import FreezeViolationError
from graftline.freezing.plan import FreezePlan
from graftline.freezing.rules import FreezeContext, Gradual
from graftline.training.fitting import CONTRACT_FILE, TrainingSetup
from graftline.training.phases import DONE_FILE, TrainingResult, fit_phases, phase_folder
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant

RULE = Gradual(head_epochs=2, step_epochs=1, step_groups=2, until=0.3, epochs=4)


def make_graft() -> Graft:
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=3)
    return Graft(network, Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), Weights("file", "here", "0" * 64))


def plans(graft: Graft, epochs: int | None = None) -> list[FreezePlan]:
    return RULE.phases(graft.network, FreezeContext(12, 3, pretrained=True, epochs=epochs))


def make_fitting(version: DatasetVersion, tmp_path: Path, **changes: Any) -> TrainingSetup:
    settings: dict[str, Any] = {
        "version": version,
        "policy": Policy("none", None, {}),
        "features": Features(directory=str(tmp_path / "cache")),
        "recipe": Recipe(batch_size=12, workers=0),
        "optimizer": functools.partial(torch.optim.AdamW, lr=None),  # type: ignore[arg-type]  # as the plan recommends
        "schedule": constant,
        "make_trainer": functools.partial(pl.Trainer, accelerator="cpu", devices=1),
        "seed": 0,
    }
    return TrainingSetup(**{**settings, **changes})


class Heard:
    """What a training told."""

    def __init__(self) -> None:
        self.epochs: list[tuple[float, int]] = []
        self.rates: list[tuple[int, set[float]]] = []

    def on_epoch(self, metrics: dict[str, float], step: int) -> None:
        self.epochs.append((metrics["epoch"], step))

    def on_start(self, rates: dict[str, float], step: int) -> None:
        self.rates.append((step, set(rates.values())))


class StopError(Exception):
    """Stands for whatever interrupts a training."""


def stop_at(step: int) -> Heard:
    """Return a listener that interrupts the training when a phase starts at an optimizer step."""

    class Interrupting(Heard):
        def on_start(self, rates: dict[str, float], at: int) -> None:
            super().on_start(rates, at)
            if at == step:
                raise StopError

    return Interrupting()


def run(
    graft: Graft,
    fitting: TrainingSetup,
    directory: Path,
    heard: Heard,
    *,
    epochs: int | None = None,
    resume: bool = False,
) -> TrainingResult:
    return fit_phases(
        fitting,
        graft,
        plans(graft, epochs),
        directory,
        on_epoch=heard.on_epoch,
        on_start=heard.on_start,
        on_source=lambda _: None,
        resume=resume,
    )


def moved(before: dict[str, torch.Tensor], network: torch.nn.Module) -> set[str]:
    parameters = {name for name, _ in network.named_parameters()}
    return {
        name for name, value in network.state_dict().items() if name in parameters and not value.equal(before[name])
    }


def test_phases_train_what_their_plans_say_and_count_on(version: DatasetVersion, tmp_path: Path) -> None:
    graft, heard = make_graft(), Heard()
    phases = plans(graft)
    assert [plan.frozen_groups for plan in phases] == [6, 4, 2]
    assert [plan.epochs for plan in phases] == [2, 1, 1]
    before = {name: value.clone() for name, value in graft.network.state_dict().items()}
    trained = run(graft, make_fitting(version, tmp_path), tmp_path / "fit", heard)

    assert heard.epochs == [(0, 3), (1, 6), (2, 9), (3, 12)], "36 images in batches of 12"
    assert heard.rates == [(0, {0.01}), (6, {0.001}), (9, {0.001})], "each phase at the rate that its plan recommends"
    assert len(trained.fit.history) == 4
    assert trained.fit.best in trained.fit.history
    best = int(trained.fit.best["epoch"])
    deepest = phases[{0: 0, 1: 0, 2: 1, 3: 2}[best]]
    assert phases[trained.best_phase].trainable == deepest.trainable
    assert moved(before, graft.network) == deepest.trainable
    for number, plan in enumerate(phases, start=1):
        contract = json.loads((phase_folder(tmp_path / "fit", number - 1) / CONTRACT_FILE).read_text())
        assert set(contract["trainable"]) == plan.trainable
        assert not plan.trainable & set(contract["hashes"])


def test_a_resume_does_not_repeat_what_is_finished(version: DatasetVersion, tmp_path: Path) -> None:
    whole, fitting = make_graft(), make_fitting(version, tmp_path)
    expected = run(whole, fitting, tmp_path / "whole", Heard())

    graft = make_graft()
    with pytest.raises(StopError):
        run(graft, fitting, tmp_path / "fit", stop_at(6))  # the second phase's first
    assert (tmp_path / "fit" / DONE_FILE).exists()

    graft, heard = make_graft(), Heard()
    resumed = run(graft, fitting, tmp_path / "fit", heard, resume=True)
    assert [epoch for epoch, _ in heard.epochs] == [2, 3], "what was unfrozen stays unfrozen"
    assert [row["val/loss"] for row in resumed.fit.history] == [row["val/loss"] for row in expected.fit.history]
    for name, value in graft.network.state_dict().items():
        assert value.equal(whole.network.state_dict()[name]), name


def test_a_resume_with_more_epochs_goes_on_in_the_phase_it_was_in(version: DatasetVersion, tmp_path: Path) -> None:
    fitting, graft = make_fitting(version, tmp_path), make_graft()
    run(graft, fitting, tmp_path / "fit", Heard(), epochs=1)
    graft, heard = make_graft(), Heard()
    resumed = run(graft, fitting, tmp_path / "fit", heard, epochs=4, resume=True)
    assert [epoch for epoch, _ in heard.epochs] == [1, 2, 3], "one more with the head, then the other two phases"
    assert len(resumed.fit.history) == 4
    assert [step for step, _ in heard.rates] == [6, 9], "told at the first step of a phase, not where it is taken up"


@pytest.mark.parametrize(
    ("epochs", "phase"), [(2, r"phase 2 of the run fewer epochs \(0\) than"), (1, r"the run fewer epochs \(1\) than")]
)
def test_a_resume_undoes_nothing(epochs: int, phase: str, version: DatasetVersion, tmp_path: Path) -> None:
    fitting = make_fitting(version, tmp_path)
    with pytest.raises(StopError):
        run(make_graft(), fitting, tmp_path / "fit", stop_at(9))
    assert (phase_folder(tmp_path / "fit", 1) / DONE_FILE).exists()
    with pytest.raises(UserError, match=f"{phase}.*leave it out"):
        run(make_graft(), fitting, tmp_path / "fit", Heard(), epochs=epochs, resume=True)


def test_phases_that_make_it_worse_are_undone(version: DatasetVersion, tmp_path: Path) -> None:
    graft = make_graft()
    wild = functools.partial(torch.optim.SGD, lr=30.0)  # what the head alone survives, the body does not
    trained = run(graft, make_fitting(version, tmp_path, optimizer=wild), tmp_path / "fit", Heard())
    losses = [row["val/loss"] for row in trained.fit.history]
    assert trained.fit.best["val/loss"] == min(losses)
    if losses.index(min(losses)) < 2:
        state = torch.load(tmp_path / "fit" / "best.ckpt", weights_only=True)["state_dict"]
        assert graft.network.classifier.weight.equal(state["network.classifier.weight"])  # type: ignore[union-attr, operator]
    else:
        pytest.fail(f"the later phases were to be worse: {losses}")


def test_averaged_weights_leave_what_is_frozen_alone(version: DatasetVersion, tmp_path: Path) -> None:
    """Bit for bit, in a live training, where the whole network is averaged; the contract looks."""
    graft = make_graft()
    for module in graft.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.num_batches_tracked is not None
            module.num_batches_tracked.fill_(101)
    averaged = Recipe(batch_size=12, workers=0, ema_decay=0.9)
    fitting = make_fitting(version, tmp_path, recipe=averaged, features=Features(cache=False))
    plan = plans(graft)[-1]
    fitting.run(graft, plan, tmp_path / "fit", on_epoch=lambda *_: None, show_progress=False)
    counters = {
        int(value) for name, value in graft.network.state_dict().items() if name.endswith("num_batches_tracked")
    }
    assert counters == {101, 104}, "three steps of the layers that are trained"


def test_a_resume_is_held_to_the_contract_of_the_first_start(version: DatasetVersion, tmp_path: Path) -> None:
    graft, fitting = make_graft(), make_fitting(version, tmp_path)
    plan = plans(graft)[0]
    fitting.run(graft, plan, tmp_path / "fit", on_epoch=lambda *_: None, show_progress=False)
    other = make_graft()
    with torch.no_grad():
        next(other.network.parameters())[0, 0, 0, 0] += 1
    with pytest.raises(FreezeViolationError, match=r"conv_stem\.weight is frozen, but not what it was"):
        fitting.run(other, plan, tmp_path / "fit", on_epoch=lambda *_: None, resume=True, show_progress=False)


def test_each_run_is_held_to_its_contract(version: DatasetVersion, tmp_path: Path) -> None:
    """What moves a frozen tensor during the fit ends the run, with the tensor's name."""
    graft = make_graft()

    def nudge(metrics: dict[str, float], step: int) -> None:
        with torch.no_grad():
            graft.network.get_parameter("conv_stem.weight")[0, 0, 0, 0] += 1

    with pytest.raises(FreezeViolationError, match=r"conv_stem\.weight is frozen, but not what it was"):
        make_fitting(version, tmp_path).run(
            graft, plans(graft)[0], tmp_path / "fit", on_epoch=nudge, show_progress=False
        )


def test_each_run_is_held_to_gradients(version: DatasetVersion, tmp_path: Path) -> None:
    """A layer that is trained, but not on the way to the loss, ends the run in its first steps."""
    graft, epochs = make_graft(), Heard()
    graft.network.classifier.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))  # type: ignore[union-attr]
    plan = plans(graft)[0]
    assert "classifier.unused" in plan.trainable
    with pytest.raises(FreezeViolationError, match=r"classifier\.unused is to be trained, but"):
        make_fitting(version, tmp_path, features=Features(cache=False)).run(
            graft, plan, tmp_path / "fit", on_epoch=epochs.on_epoch, show_progress=False
        )
    fitting = make_fitting(version, tmp_path)
    counts = fitting.run(make_graft(), plans(make_graft())[0], tmp_path / "ok", on_epoch=epochs.on_epoch).contract
    assert counts["tensors_with_gradient"] == counts["trained_tensors"] == 2


def test_a_cache_that_changes_predictions_is_said(
    version: DatasetVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graft, fitting = make_graft(), make_fitting(version, tmp_path)
    plan = plans(graft)[0]
    fitting.run(graft, plan, tmp_path / "first", on_epoch=lambda *_: None, show_progress=False)
    assert "change a predicted probability" not in "".join(capsys.readouterr())
    for file in (tmp_path / "cache").glob("*/*/activations.bin"):  # activations of something else, with right checksums
        shift_activations(file.parent)
    fitted = fitting.run(make_graft(), plan, tmp_path / "second", on_epoch=lambda *_: None, show_progress=False)
    assert fitted.cache_change is not None
    assert fitted.cache_change > MAX_CHANGE
    assert "train again with features.precision=float32" in "".join(capsys.readouterr()).replace("\n", " ")


def shift_activations(directory: Path) -> None:
    """Make a segment of the cache hold other activations than the network gives."""
    segment = Segment(directory)
    assert segment.header is not None
    array = np.array(segment.array(), np.float32)
    for shard in range(segment.header.num_shards):
        rows = segment.header.rows(shard)
        segment.write(shard, array[rows.start : rows.stop] + 1)
