"""What a GPU does otherwise: the bodies run on each machine's CPU too, so that they are right where there is a GPU."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from workplace import TINY, Workplace

from benchmarks import gpu
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.features.cut import cut
from graftline.features.engine import MAX_RELATIVE_DIFFERENCE, make_engine
from graftline.freezing.batchnorm import statistics
from graftline.freezing.plan import plan_from_depth
from graftline.training.batchnorm import prepare_statistics
from graftline.training.fit_directory import FitDirectory
from graftline.training.forecast import time_parts, time_pass
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.results import PhaseResult
from graftline.training.setup import TrainingSetup
from graftline.training.source_decision import choose_source
from graftline.training.training_source import CachedSource

MakeSetup = Callable[..., TrainingSetup]
HALF = 0.2  # by which numbers of 8 bits may change a loss of 1.5 in the few steps here

NO_GPU = f"torch {torch.__version__} sees no GPU here"
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)]
TWO_GPUS = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees no two GPUs here")]


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=ON_GPU)])
def accelerator(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def execution_on(accelerator: str) -> Execution:
    return Execution() if accelerator == "cpu" else Execution.local("gpu")


def train(make_setup: MakeSetup, directory: Path, accelerator: str, *, precision: str, recipe: Recipe) -> PhaseResult:
    trainer: dict[str, Any] = {"accelerator": accelerator, "devices": 1, "precision": precision}
    setup = make_setup(
        recipe=recipe,
        features=Features(cache=False),
        make_trainer=functools.partial(pl.Trainer, **trainer),
        execution=replace(execution_on(accelerator), precision=precision),
    )
    plan = plan_from_depth(setup.graft.network, 0, "test", epochs=2, learning_rate=0.003)
    return fit_phase(setup, plan, FitDirectory(directory), show_progress=False)


def losses(result: PhaseResult) -> list[float]:
    return [epoch["train/loss"] for epoch in result.history.epochs]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fit_gives_the_losses_of_a_cpu(
    make_setup: MakeSetup, tmp_path: Path, accelerator: str, precision: str
) -> None:
    recipe = Recipe(batch_size=12, workers=0)
    exact = train(make_setup, tmp_path / "exact", "cpu", precision="32-true", recipe=recipe)
    other = train(make_setup, tmp_path / "other", accelerator, precision=precision, recipe=recipe)
    assert losses(other) == pytest.approx(losses(exact), abs=1e-3 if precision == "32-true" else HALF)


def test_weights_are_channels_last_on_the_device(make_setup: MakeSetup, accelerator: str) -> None:
    setup = make_setup(execution=execution_on(accelerator))
    plan = plan_from_depth(setup.graft.network, 0, "test")
    module = setup.make_module(setup.graft.network, plan).to(setup.execution.torch_device)
    weights = [one for one in module.network.parameters() if one.ndim == 4]
    assert weights
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in weights)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
def test_a_compiled_fit_gives_the_losses_of_a_plain_one(make_setup: MakeSetup, tmp_path: Path) -> None:
    results = [
        train(
            make_setup,
            tmp_path / f"{on}",
            "gpu",
            precision="32-true",
            recipe=Recipe(batch_size=12, workers=0, compile=on),
        )
        for on in (False, True)
    ]
    assert losses(results[1]) == pytest.approx(losses(results[0]), abs=1e-3)


def test_the_frozen_pass_gives_the_activations_of_a_cpu(
    make_setup: MakeSetup, tmp_path: Path, accelerator: str
) -> None:
    setup = make_setup()
    plan = plan_from_depth(setup.graft.network, 6, "test")
    plan.apply(setup.graft.network)
    trunk = cut(setup.graft.network, plan.trainable, (32, 32), 3).trunk.eval()
    images = torch.randn(8, 3, 32, 32)
    with torch.inference_mode():
        expected = trunk(images).numpy()
    engine = make_engine(trunk, tmp_path / "trunk.onnx", images, execution_on(accelerator))
    actual = engine.run(images)
    assert abs(actual - expected).max() <= MAX_RELATIVE_DIFFERENCE * abs(expected).max()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_is_timed_stays_as_it_is(make_setup: MakeSetup, accelerator: str, precision: str) -> None:
    network = make_setup().graft.network
    plan = plan_from_depth(network, 2, "test")
    plan.apply(network)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    execution = replace(execution_on(accelerator), precision=precision)
    seconds = time_parts(cut(network, plan.trainable, (32, 32), 3), (32, 32), 3, execution)
    assert min(seconds.trunk, seconds.engine, seconds.step, seconds.tail) > 0
    assert time_pass(network, (32, 32), 3, execution) > 0
    assert all(tensor.equal(state[name]) for name, tensor in network.state_dict().items())


def test_statistics_are_adapted_on_the_device(make_setup: MakeSetup, tmp_path: Path, accelerator: str) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for name in ("cpu", accelerator):
        setup = make_setup(execution=execution_on(name), batchnorm="adapted")
        prepare_statistics(setup, FitDirectory(tmp_path / f"fit-{len(found)}"))
        found.append({key: buffer.clone() for key, buffer in statistics(setup.graft.network).items()})
    assert all(buffer.device.type == "cpu" for buffer in found[1].values())
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, rtol=1e-2, atol=1e-3, msg=key)  # a GPU's TF32


def test_the_cache_is_filled_on_the_device(make_setup: MakeSetup, tmp_path: Path, accelerator: str) -> None:
    arrays: list[list[np.ndarray]] = []
    for name in ("cpu", accelerator):
        setup = make_setup(
            execution=execution_on(name), features=Features(directory=str(tmp_path / f"cache-{len(arrays)}"))
        )
        plan = plan_from_depth(setup.graft.network, 6, "test")
        plan.apply(setup.graft.network)
        source = choose_source(setup, plan)
        assert isinstance(source, CachedSource)
        arrays.append([kept.array.take(np.arange(len(kept.array)), axis=0) for kept in source.activations])
    for expected, actual in zip(*arrays, strict=True):
        assert actual.shape == expected.shape
        assert abs(actual - expected).max() <= 2 * MAX_RELATIVE_DIFFERENCE * abs(expected).max(), "float16 on top"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
def test_gradient_checkpointing_needs_less_memory_of_a_gpu() -> None:
    peaks = {}
    for on in (False, True):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work = gpu.Work("vit_tiny_patch16_224", batch=32, warm_up=1, steps=2)
        assert gpu.fit_speed(work, "cuda", gpu.Way("float32", checkpointing=on)) > 0
        peaks[on] = torch.cuda.max_memory_allocated()
    assert peaks[True] < peaks[False]


@pytest.mark.parametrize("_", [pytest.param(None, marks=TWO_GPUS)])
def test_two_gpus_train_together(workplace: Workplace, color_folder: Path, _: None) -> None:
    words = {line.partition("=")[0]: line for line in (*TINY, "trainer=ddp")}
    ran = workplace.run("train", "data=folder", f"data.path={color_folder}", *words.values(), "trainer.devices=2")
    assert ran.code == 0, ran.output


def test_the_benchmark_runs(accelerator: str, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--device", "cuda" if accelerator == "gpu" else "cpu", "--tiny"])
    told = capsys.readouterr().out
    assert "Frozen pass of test_efficientnet" in told
    assert "Training of all of test_efficientnet" in told
    assert "plain loop on timm" in told


def test_the_benchmark_tells_cuda_graphs_apart() -> None:
    told = [way.words() for way in gpu.list_ways("cuda", tiny=False)]
    assert len(set(told)) == len(told) == 18
    assert {"TF32, channels_last, compiled", "TF32, channels_last, compiled with CUDA graphs"} <= {*told}
    assert not any("CUDA graphs" in way.words() for way in gpu.list_ways("cpu", tiny=False)), "a CPU has none"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
@pytest.mark.parametrize("measure", [gpu.plain_pass, gpu.plain_loop])
def test_the_benchmark_runs_with_cuda_graphs(measure: Callable[[gpu.Work, str, gpu.Way], float]) -> None:
    assert measure(gpu.Work.tiny(), "cuda", gpu.Way("float32", compile="compiled with CUDA graphs")) > 0
