"""A trainer on the CPU of a machine with a GPU: nothing of a training looks for the GPU."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

import graftline
from graftline.data.loaders import make_loader
from graftline.features.cache import Features
from graftline.freezing.plan import plan_from_depth
from graftline.training.setup import TrainingSetup
from graftline.training.source_decision import choose_source
from graftline.training.trainer import check_trainer
from graftline.training.training_source import LiveSource


@pytest.fixture
def _machine_with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch say that there is a GPU; whatever uses it then fails, torch's own optimizers among them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("_machine_with_gpu")
def test_choice_engine_and_loaders_on_the_cpu_use_no_gpu(
    make_setup: Callable[..., TrainingSetup], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer = functools.partial(pl.Trainer, accelerator="cpu", devices=1)
    setup = make_setup(
        make_trainer=make_trainer,
        execution=check_trainer(make_trainer),
        features=Features(cache="auto", directory=str(tmp_path / "cache")),
    )
    network = setup.graft.network
    plan = plan_from_depth(network, 6, "", epochs=10_000, learning_rate=0.01)  # so many pay for the frozen pass
    plan.apply(network)
    source = choose_source(setup, plan)
    assert "on cached activations (predicted" in source.sentence
    assert "The frozen network runs on ONNX Runtime." in capsys.readouterr().out
    assert source.cache_change() is not None
    batch = next(iter(source.make_loaders()[0]))
    assert {tensor.device.type for tensor in (batch["image"], *network.parameters())} == {"cpu"}
    assert not any(loader.pin_memory for loader in LiveSource(setup, "").make_loaders())


@pytest.mark.usefixtures("_machine_with_gpu")
def test_a_loader_pins_memory_only_where_it_is_told_to(make_setup: Callable[..., TrainingSetup]) -> None:
    samples = make_setup().version.samples("train")
    arguments = {"batch_size": 4, "shuffle": True, "seed": 0, "workers": 0}
    for pin_memory in (False, True):
        loader = make_loader(samples, lambda image, _: image, pin_memory=pin_memory, **arguments)  # type: ignore[arg-type]
        assert loader.pin_memory == pin_memory


def test_only_the_execution_asks_for_a_gpu() -> None:
    package = Path(graftline.__file__).parent
    files = [file for room in ("data", "features", "freezing", "training") for file in (package / room).glob("*.py")]
    assert len(files) > 20
    asking = r"cuda\.is_available|cuda\.device_count|mps\.is_available"
    assert not [file for file in files if re.search(asking, file.read_text(encoding="utf-8"))]
