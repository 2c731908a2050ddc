"""A training in phases: what each trains, what a resume keeps, and whose weights are left in the end."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.features.cache import Features
from graftline.freezing.plan import FreezePlan, plan_from_depth
from graftline.freezing.rule import FreezeContext
from graftline.freezing.rules import Gradual
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit_directory import FitDirectory
from graftline.training.phases import train
from graftline.training.recipe import Recipe
from graftline.training.results import MONITOR, TrainingResult
from graftline.training.setup import TrainingSetup
from graftline.training.training_source import TrainingSource

MakeSetup = Callable[..., TrainingSetup]
RULE = Gradual(head_epochs=2, step_epochs=1, step_groups=2, until=0.3, epochs=4)


def make_plans(setup: TrainingSetup, epochs: int | None = None) -> tuple[FreezePlan, ...]:
    return RULE.decide(FreezeContext(setup.graft.network, 12, pretrained=True, epochs=epochs)).plans


class Heard(FitEvents):
    """What a training told."""

    def __init__(self) -> None:
        self.epochs: list[tuple[float, int]] = []
        self.rates: list[tuple[int, set[float]]] = []

    def on_epoch(self, metrics: Metrics, step: int) -> None:
        self.epochs.append((metrics["epoch"], step))

    def on_start(self, learning_rates: Metrics, step: int) -> None:
        self.rates.append((step, set(learning_rates.values())))


class StopError(Exception):
    """Stands for whatever interrupts a training."""


class StopAt(Heard):
    """Interrupts the training when a phase starts at an optimizer step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_start(self, learning_rates: Metrics, step: int) -> None:
        super().on_start(learning_rates, step)
        if step == self.step:
            raise StopError


def run(
    setup: TrainingSetup, directory: Path, heard: FitEvents, *, epochs: int | None = None, resume: bool = False
) -> TrainingResult:
    return train(setup, make_plans(setup, epochs), FitDirectory(directory), events=heard, resume=resume)


def moved(before: dict[str, torch.Tensor], network: torch.nn.Module) -> set[str]:
    parameters = {name for name, _ in network.named_parameters()}
    return {
        name for name, value in network.state_dict().items() if name in parameters and not value.equal(before[name])
    }


def test_phases_train_what_their_plans_say_and_count_on(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup, heard = make_setup(), Heard()
    graft, phases = setup.graft, make_plans(setup)
    assert [plan.frozen_groups for plan in phases] == [6, 4, 2]
    assert [plan.epochs for plan in phases] == [2, 1, 1]
    before = {name: value.clone() for name, value in graft.network.state_dict().items()}
    trained = run(setup, tmp_path / "fit", heard)

    assert heard.epochs == [(0, 3), (1, 6), (2, 9), (3, 12)], "36 images in batches of 12"
    assert heard.rates == [(0, {0.005}), (6, {0.001}), (9, {0.001})], "each phase at the rate that its plan recommends"
    assert len(trained.phases) == 3
    assert len(trained.history.epochs) == 4
    assert trained.history.best in trained.history.epochs
    best = int(trained.history.best["epoch"])
    deepest = phases[{0: 0, 1: 0, 2: 1, 3: 2}[best]]
    assert phases[trained.best_phase].trainable == deepest.trainable
    assert moved(before, graft.network) == deepest.trainable
    for number, plan in enumerate(phases, start=1):
        kept = json.loads(FitDirectory(tmp_path / "fit").phase(number - 1).freeze_check.read_text())
        assert set(kept["trainable"]) == plan.trainable
        assert not plan.trainable & set(kept["hashes"])


def test_a_resume_does_not_repeat_what_is_finished(make_setup: MakeSetup, tmp_path: Path) -> None:
    whole = make_setup()
    expected = run(whole, tmp_path / "whole", Heard())

    with pytest.raises(StopError):
        run(make_setup(), tmp_path / "fit", StopAt(6))  # the second phase's first
    assert FitDirectory(tmp_path / "fit").result.exists()

    setup, heard = make_setup(), Heard()
    resumed = run(setup, tmp_path / "fit", heard, resume=True)
    assert [epoch for epoch, _ in heard.epochs] == [2, 3], "what was unfrozen stays unfrozen"
    assert losses(resumed) == losses(expected)
    assert_same_weights(setup, whole)
    assert [phase.freeze_record for phase in resumed.phases] == [phase.freeze_record for phase in expected.phases]

    finished, silent = make_setup(), Heard()
    again = run(finished, tmp_path / "fit", silent, resume=True)  # as after an interruption behind the last epoch
    assert not silent.epochs
    assert again == resumed
    assert_same_weights(finished, whole)


def losses(result: TrainingResult) -> list[tuple[float, float]]:
    return [(epoch["train/loss"], epoch["val/loss"]) for epoch in result.history.epochs]


def assert_same_weights(setup: TrainingSetup, expected: TrainingSetup) -> None:
    for name, value in setup.graft.network.state_dict().items():
        assert value.equal(expected.graft.network.state_dict()[name]), name


def test_a_training_that_was_killed_before_its_first_epoch_begins_anew(make_setup: MakeSetup, tmp_path: Path) -> None:
    whole = make_setup()
    expected = run(whole, tmp_path / "whole", Heard())
    with pytest.raises(StopError):
        run(make_setup(), tmp_path / "fit", StopAt(0))
    assert not list((tmp_path / "fit").glob("*.ckpt"))
    setup = make_setup()
    assert losses(run(setup, tmp_path / "fit", Heard(), resume=True)) == losses(expected)
    assert_same_weights(setup, whole)


def test_a_training_that_stopped_early_is_finished(
    make_setup: MakeSetup, judged_version: DatasetVersion, tmp_path: Path
) -> None:
    """A resume, as after an interruption behind the fit or a kill in its last moment, adds no epoch to it."""
    impatient = Recipe(batch_size=12, workers=0, patience=1)
    wild = functools.partial(torch.optim.SGD, lr=30.0)
    setup = make_setup(recipe=impatient, optimizer=wild, version=judged_version)
    plan = dataclasses.replace(make_plans(setup)[0], epochs=50)
    stopped = train(setup, [plan], FitDirectory(tmp_path / "fit"))
    assert len(stopped.history.epochs) < 50
    again = make_setup(recipe=impatient, optimizer=wild, version=judged_version)
    assert train(again, [plan], FitDirectory(tmp_path / "fit"), resume=True) == stopped
    assert_same_weights(again, setup)
    FitDirectory(tmp_path / "fit").result.unlink()  # as after a kill just before it is written
    killed = make_setup(recipe=impatient, optimizer=wild, version=judged_version)
    found = train(killed, [plan], FitDirectory(tmp_path / "fit"), resume=True)
    assert found.history.epochs == stopped.history.epochs
    assert_same_weights(killed, setup)


def test_a_resume_with_more_epochs_goes_on_in_the_phase_it_was_in(make_setup: MakeSetup, tmp_path: Path) -> None:
    run(make_setup(), tmp_path / "fit", Heard(), epochs=1)
    heard = Heard()
    resumed = run(make_setup(), tmp_path / "fit", heard, epochs=4, resume=True)
    assert [epoch for epoch, _ in heard.epochs] == [1, 2, 3], "one more with the head, then the other two phases"
    assert len(resumed.history.epochs) == 4
    assert [step for step, _ in heard.rates] == [6, 9], "told at the first step of a phase, not where it is taken up"


@pytest.mark.parametrize(
    ("epochs", "phase"), [(2, r"phase 2 of the run fewer epochs \(0\) than"), (1, r"the run fewer epochs \(1\) than")]
)
def test_a_resume_undoes_nothing(epochs: int, phase: str, make_setup: MakeSetup, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        run(make_setup(), tmp_path / "fit", StopAt(9))
    assert FitDirectory(tmp_path / "fit").phase(1).result.exists()
    with pytest.raises(UserError, match=f"{phase}.*leave it out"):
        run(make_setup(), tmp_path / "fit", Heard(), epochs=epochs, resume=True)


def test_phases_that_make_it_worse_are_undone(
    make_setup: MakeSetup, judged_version: DatasetVersion, tmp_path: Path
) -> None:
    wild = functools.partial(torch.optim.SGD, lr=3.0)  # what the head alone survives, the body does not
    setup = make_setup(optimizer=wild, version=judged_version)
    graft, trained = setup.graft, run(setup, tmp_path / "fit", Heard())
    losses = [row[MONITOR] for row in trained.history.epochs]
    assert trained.history.best[MONITOR] == min(losses)
    if losses.index(min(losses)) < 2:
        state = torch.load(tmp_path / "fit" / "best.ckpt", weights_only=True)["state_dict"]
        assert graft.network.classifier.weight.equal(state["network.classifier.weight"])  # type: ignore[union-attr, operator]
    else:
        pytest.fail(f"the later phases were to be worse: {losses}")
    for number in range(3):
        phase = FitDirectory(tmp_path / "fit").phase(number)
        content = json.loads(phase.result.read_text())
        content["history"]["best"][MONITOR] = 0.0
        phase.result.write_text(json.dumps(content))
    equal = make_setup(optimizer=wild, version=judged_version)
    assert run(equal, tmp_path / "fit", Heard(), resume=True).best_phase == 0, "the first of equal phases is kept"
    assert_same_weights(equal, setup)


def test_the_last_epoch_is_kept_where_the_validation_images_tell_nothing(
    make_setup: MakeSetup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Twelve of them, for which the first epochs happen to be the best; and none ends the training early."""
    wild = functools.partial(torch.optim.SGD, lr=3.0)
    setup = make_setup(optimizer=wild, recipe=Recipe(batch_size=12, workers=0, patience=1))
    with caplog.at_level("INFO", "graftline"):
        trained = run(setup, tmp_path / "fit", Heard())
    losses = [row[MONITOR] for row in trained.history.epochs]
    assert losses[-1] > min(losses)
    assert len(losses) == 4
    assert trained.history.best == trained.history.epochs[-1]
    assert trained.kept is trained.phases[-1]
    of_last = make_setup()
    for number in range(3):
        state = torch.load(FitDirectory(tmp_path / "fit").phase(number).last, weights_only=True)["state_dict"]
        found = {name.removeprefix("network."): value for name, value in state.items()}
        of_last.graft.network.load_state_dict(found, strict=False)
    assert_same_weights(setup, of_last)
    few = "there are 12 validation images, too few to choose by (20 would do)"
    assert caplog.messages.count(f"The weights of the last epoch are kept: {few}.") == 1


class Judging(FitEvents):
    """Counts the validation images of each phase."""

    def __init__(self) -> None:
        self.images: list[int] = []

    def on_source(self, source: TrainingSource) -> None:
        self.images.append(len(source.setup.version.samples("validation").paths))


@pytest.mark.parametrize(
    ("depths", "live", "fewest", "judging"),
    [
        ([6], False, 6, [30]),  # a head on cached activations
        ([6], True, 6, [18]),
        ([6, 4], False, 6, [18, 18]),  # phases are compared
        ([0], True, 6, [18]),
        ([0], True, 24, [24]),
        ([0], True, 500, [30]),
    ],
)
def test_epochs_are_judged_by_no_more_images_than_are_trained(
    make_setup: MakeSetup,
    judged_version: DatasetVersion,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    depths: list[int],
    live: bool,
    fewest: int,
    judging: list[int],
) -> None:
    """Of 18 training and 30 validation images, or by so many, where these pass what is trained."""
    monkeypatch.setattr("graftline.freezing.evidence.FEWEST_VALIDATED", fewest)
    setup, heard = make_setup(version=judged_version), Judging()
    setup = dataclasses.replace(setup, features=dataclasses.replace(setup.features, cache=not live))
    plans = [plan_from_depth(setup.graft.network, depth, "", epochs=1, learning_rate=0.001) for depth in depths]
    with caplog.at_level("INFO", "graftline"):
        train(setup, plans, FitDirectory(tmp_path / "fit"), events=heard)
    assert heard.images == judging
    told = f"Each epoch is judged by {judging[0]} of the 30 validation images."
    assert (told in caplog.messages) is (judging[0] < 30)


class FirstHeads(FitEvents):
    """Keeps the head that each phase begins with."""

    def __init__(self, setup: TrainingSetup) -> None:
        self._network, self.heads = setup.graft.network, list[torch.Tensor]()

    def on_source(self, source: TrainingSource) -> None:  # noqa: ARG002 - the event's signature
        head = next(reversed(dict(self._network.named_parameters()).values()))
        self.heads.append(head.detach().clone())


@pytest.mark.parametrize("anew", [False, True])
def test_a_phase_goes_on_from_the_one_before_or_begins_anew(
    make_setup: MakeSetup, tmp_path: Path, *, anew: bool
) -> None:
    setup = make_setup(features=Features(cache=False))
    head, whole = (dataclasses.replace(plan, epochs=1) for plan in (make_plans(setup)[0], make_plans(setup)[-1]))
    heard = FirstHeads(setup)
    train(setup, [head, dataclasses.replace(whole, anew=anew)], FitDirectory(tmp_path), events=heard)
    first, second = heard.heads
    assert torch.equal(first, second) == anew
    assert FreezePlan.from_json(json.loads(json.dumps(whole.to_json()))) == whole
