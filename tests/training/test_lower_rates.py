"""A training that diverges at a recommended rate begins anew at a lower one; at the user's own rate it ends."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graftline.errors import DivergenceError
from graftline.freezing.depth import head_plan
from graftline.freezing.plan import plan_from_depth
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit_directory import FitDirectory
from graftline.training.phases import train
from graftline.training.results import TrainingResult
from graftline.training.setup import TrainingSetup

MakeSetup = Callable[..., TrainingSetup]


class Brittle(torch.optim.AdamW):
    """AdamW that breaks a weight at rates above a limit: where a network diverges by itself nobody can say."""

    limit = 0.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            if group["lr"] > self.limit:
                group["params"][0].fill_(torch.nan)
        return loss


class Starts(FitEvents):
    """Notes the learning rate of each start, and interrupts one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.rates: list[float] = []
        self.begun_anew: list[int] = []
        self._stop_at = stop_at

    def on_start(self, learning_rates: Metrics, step: int) -> None:  # noqa: ARG002 - the event's signature
        self.rates.append(max(learning_rates.values()))
        if len(self.rates) == self._stop_at:
            raise InterruptedError

    def on_begin_anew(self, step: int) -> None:
        self.begun_anew.append(step)


def run(setup: TrainingSetup, directory: Path, starts: Starts, *, resume: bool = False) -> TrainingResult:
    plan = plan_from_depth(setup.graft.network, 4, "for this test", epochs=2, learning_rate=0.09)
    return train(setup, [plan], FitDirectory(directory), events=starts, resume=resume)


def brittle(limit: float, rate: float | None = None) -> Any:
    return functools.partial(type("Brittle", (Brittle,), {"limit": limit}), lr=rate)


def weights(setup: TrainingSetup) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in setup.graft.network.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(value.equal(other[name]) for name, value in one.items())


def test_it_begins_anew_with_the_numbers_of_the_lower_rate(
    make_setup: MakeSetup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup, starts = make_setup(optimizer=brittle(0.02)), Starts()
    result = run(setup, tmp_path / "fit", starts)
    assert starts.rates == pytest.approx([0.09, 0.03, 0.01])
    assert starts.begun_anew == [0, 0]
    assert len(result.history.epochs) == 2
    assert json.loads((tmp_path / "fit" / "lowered.json").read_text()) == {"times": 2}
    told = [record.message for record in caplog.records if "begins anew with" in record.message]
    assert len(told) == 2
    assert told[0].endswith("at a learning rate of 0.09: it begins anew with a third of that.")

    plain = make_setup(optimizer=functools.partial(torch.optim.AdamW, lr=0.09 / 9))
    expected = run(plain, tmp_path / "plain", Starts())
    assert [epoch["val/loss"] for epoch in result.history.epochs] == [e["val/loss"] for e in expected.history.epochs]
    assert_same(weights(setup), weights(plain))


def test_a_later_phase_that_begins_anew_is_told_with_its_first_step(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup, starts = make_setup(optimizer=brittle(0.02)), Starts()
    head = head_plan(setup.graft.network, epochs=1, learning_rate=0.01)
    deep = plan_from_depth(setup.graft.network, 4, "for this test", epochs=2, learning_rate=0.09)
    result = train(setup, [head, deep], FitDirectory(tmp_path / "fit"), events=starts)
    assert starts.rates == pytest.approx([0.01, 0.09, 0.03, 0.01])
    assert result.phases[0].history.steps == 3, "36 images in batches of 12"
    assert starts.begun_anew == [3, 3]


def test_a_resume_takes_the_lowered_rate(make_setup: MakeSetup, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        run(make_setup(optimizer=brittle(0.02)), tmp_path / "fit", Starts(stop_at=3))
    assert not list((tmp_path / "fit").glob("*.ckpt")), "nothing to go on from at a rate that diverged"
    setup, starts = make_setup(optimizer=brittle(0.02)), Starts()
    run(setup, tmp_path / "fit", starts, resume=True)
    assert starts.rates == pytest.approx([0.01])
    whole = make_setup(optimizer=brittle(0.02))
    run(whole, tmp_path / "whole", Starts())
    assert_same(weights(setup), weights(whole))


def test_a_new_run_in_the_same_folder_begins_at_the_recommended_rate(make_setup: MakeSetup, tmp_path: Path) -> None:
    run(make_setup(optimizer=brittle(0.05)), tmp_path / "fit", Starts())
    starts = Starts()
    run(make_setup(optimizer=brittle(1.0)), tmp_path / "fit", starts)
    assert starts.rates == [0.09]
    assert not (tmp_path / "fit" / "lowered.json").exists()


@pytest.mark.parametrize(("rate", "tried"), [(None, 3), (0.09, 1)])
def test_it_ends_after_two_lower_rates_and_at_once_at_the_users_own(
    rate: float | None, tried: int, make_setup: MakeSetup, tmp_path: Path
) -> None:
    starts = Starts()
    with pytest.raises(DivergenceError, match=r"diverged: in epoch 1 .* at a learning rate of .*: lower Brittle\.lr\."):
        run(make_setup(optimizer=brittle(0.0, rate)), tmp_path / "fit", starts)
    assert len(starts.rates) == tried
