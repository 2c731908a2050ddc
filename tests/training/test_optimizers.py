"""Optimizers by name: each that is offered trains, keeps its state in a checkpoint and has a rate that goes with it."""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from torch import nn

from graftline.errors import UserError
from graftline.freezing.plan import plan_from_depth
from graftline.training import optimizers
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit_directory import FitDirectory
from graftline.training.groups import Layers, make_optimizer
from graftline.training.phases import train
from graftline.training.setup import TrainingSetup
from graftline.training.trainer import check_optimizer, weight_decay_of

MakeSetup = Callable[..., TrainingSetup]
OFFERED = [name for name in optimizers.names() if optimizers.refusal(name) is None]


def named(name: str, lr: float | None = None) -> functools.partial[torch.optim.Optimizer]:
    target, arguments = optimizers.find(name)
    return functools.partial(get_object(target), lr=lr, **arguments)


class Training:
    """A convolution, a norm and a head of five classes, and what takes steps on them."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
        make = optimizers.with_learning_rate(named(name), 0.001)
        decay = weight_decay_of(make)
        self.optimizer = make_optimizer(self.network, make, weight_decay=decay, layers=Layers(), layer_decay=0.9)

    def step(self, number: int) -> float:
        """Do one step as Lightning does it, with a closure, and return the loss before it."""
        generator = torch.Generator().manual_seed(number % 2)
        images, labels = torch.randn(8, 3, 4, 4, generator=generator), torch.arange(8) % 5

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.network(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        return float(self.optimizer.step(closure))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OFFERED)
def test_it_learns_and_goes_on_from_a_checkpoint_as_if_nothing_had_been(name: str) -> None:
    whole = Training(name)
    losses = [whole.step(number) for number in range(3)]
    file = io.BytesIO()
    torch.save([whole.network.state_dict(), whole.optimizer.state_dict()], file)
    file.seek(0)
    losses += [whole.step(number) for number in range(3, 20)]
    assert sum(losses[-2:]) < sum(losses[:2])

    resumed = Training(name)
    network, optimizer = torch.load(file, weights_only=True)
    resumed.network.load_state_dict(network)
    resumed.optimizer.load_state_dict(optimizer)
    assert [resumed.step(number) for number in range(3, 20)] == losses[3:]


def test_what_a_fit_cannot_have_is_refused_with_the_reason() -> None:
    reasons = {name: optimizers.refusal(name) for name in optimizers.names() if name not in OFFERED}
    assert {"adahessian", "lbfgs", "rprop", "sparseadam", "kron", "kronw"} < set(reasons)
    if not torch.cuda.is_available():
        assert reasons["bnblion8bit"] == "it needs an NVIDIA GPU and the package bitsandbytes"
        assert reasons["fusedadam"] == "it needs an NVIDIA GPU and the package apex"


def test_the_settings_are_timms_and_go_with_adamws() -> None:
    assert optimizers.find("clion").arguments["caution"] is True
    assert optimizers.find("asgd").target == "torch.optim.ASGD"
    for name in OFFERED:
        settings = optimizers.settings_of(named(name))
        if settings is not None and settings.decoupled:  # what a step takes off a weight is rate times decay
            decay = optimizers.find(name).arguments["weight_decay"]
            assert decay * settings.rate == pytest.approx(0.05, rel=0.05), name


def test_the_users_own_rate_stays() -> None:
    assert optimizers.with_learning_rate(named("lion", lr=0.5), 0.001).keywords["lr"] == 0.5  # type: ignore[attr-defined]


def test_it_is_said_where_nobody_knows_the_rate(caplog: pytest.LogCaptureFixture) -> None:
    class Own(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, {"lr": lr})

    check_optimizer(functools.partial(torch.optim.SGD, lr=None))  # type: ignore[arg-type]  # as the plan says
    check_optimizer(functools.partial(Own, lr=0.1))
    assert not caplog.messages
    unknown = functools.partial(Own, lr=None)  # type: ignore[arg-type]  # likewise
    check_optimizer(unknown)
    assert caplog.messages == ["Nobody has matched Own with AdamW, whose learning rates it takes: Own.lr sets its own."]
    assert optimizers.with_learning_rate(unknown, 0.25).keywords == {"lr": 0.25}  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="arguments of Own"):
        check_optimizer(functools.partial(Own, lr=0.1, size=3))  # type: ignore[call-arg]  # the mistake


@pytest.mark.parametrize("name", ["lion", "muon"])
def test_a_resumed_fit_ends_as_the_whole_one(name: str, make_setup: MakeSetup, tmp_path: Path) -> None:
    class Stop(FitEvents):
        def on_epoch(self, metrics: Metrics, step: int) -> None:  # noqa: ARG002 - the event's signature
            if metrics["epoch"] == 1:
                raise InterruptedError

    def run(directory: str, events: FitEvents, *, resume: bool = False) -> dict[str, torch.Tensor]:
        setup = make_setup(optimizer=named(name))
        plan = plan_from_depth(setup.graft.network, 4, "for this test", epochs=3, learning_rate=0.001)
        train(setup, [plan], FitDirectory(tmp_path / directory), events=events, resume=resume)
        return dict(setup.graft.network.state_dict())

    with pytest.raises(InterruptedError):
        run("fit", Stop())
    resumed, whole = run("fit", FitEvents(), resume=True), run("whole", FitEvents())
    assert all(value.equal(whole[name]) for name, value in resumed.items())
