"""The forecast as sums of given seconds, and that timing leaves no trace; benchmarks/forecast.py has the real times."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from graftline.data.loaders import UnreadableImageError
from graftline.data.version import Samples
from graftline.execution import Execution
from graftline.features.cut import cut
from graftline.freezing.plan import plan_from_depth
from graftline.training.forecast import (
    DISK_BYTES_PER_SECOND,
    EXPORT_SECONDS,
    SecondsPerImage,
    Workload,
    decode_seconds,
    predict,
    time_parts,
)
from graftline.training.setup import TrainingSetup

SECONDS = SecondsPerImage(trunk=0.1, engine=0.04, step=0.01, tail=0.004)
WORK = Workload(
    train=100,
    validation=50,
    epochs=10,
    to_compute=150,
    cached_bytes=DISK_BYTES_PER_SECOND,
    in_memory=True,
    decode=0.02,
    decoded_live=1500,
)
FITS = 10 * (100 * 0.01 + 50 * 0.004)


def test_the_parts_add_up() -> None:
    predicted = predict(SECONDS, WORK)
    computed = EXPORT_SECONDS + 150 * (0.02 + 0.04)
    assert predicted.cached == pytest.approx(computed + 1 + 1 + FITS)  # export, decoding and pass, write, read
    assert predicted.live == pytest.approx(10 * 150 * (0.02 + 0.1) + FITS), "no image stays in memory"
    assert predict(SECONDS, replace(WORK, decoded_live=150)).live == pytest.approx(150 * (0.02 + 10 * 0.1) + FITS)


@pytest.mark.parametrize(
    ("changes", "cached"),
    [
        ({"to_compute": 0}, 1 + FITS),  # read once
        ({"to_compute": 0, "in_memory": False}, 10 + FITS),  # at every epoch
        ({"to_compute": 50}, EXPORT_SECONDS + 50 * 0.06 + 2 + FITS),
    ],
)
def test_what_is_there_is_not_computed(changes: dict[str, float], cached: float) -> None:
    assert predict(SECONDS, replace(WORK, **changes)).cached == pytest.approx(cached)  # type: ignore[arg-type]


def test_the_deeper_the_boundary_the_less_the_cache_saves() -> None:
    """Of a network whose whole forward pass takes 0.1 s and 0.2 s more with its gradient."""
    savings = []
    for share in (1.0, 0.75, 0.5, 0.25):
        seconds = SecondsPerImage(0.1 * share, 0.04 * share, 0.3 * (1 - share), 0.1 * (1 - share))
        predicted = predict(seconds, WORK)
        savings.append(predicted.live / predicted.cached)
    assert savings == sorted(savings, reverse=True)
    assert savings[-1] > 1


def test_timing_leaves_network_and_random_numbers_alone(make_setup: Callable[..., TrainingSetup]) -> None:
    network = make_setup(network={"drop_rate": 0.2}).graft.network
    plan = plan_from_depth(network, 2, "a test")
    plan.apply(network)
    parts = cut(network, plan.trainable, (32, 32))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random = torch.random.get_rng_state()
    seconds = time_parts(parts, (32, 32), 3, Execution())
    assert min(seconds.trunk, seconds.engine, seconds.step, seconds.tail) > 0
    assert all(tensor.equal(state[name]) for name, tensor in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.random.get_rng_state().equal(random)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_file_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    samples = Samples([str(tmp_path / "gone.png")], np.zeros(1, np.int64), None, ["0" * 64])
    with pytest.raises(UnreadableImageError, match=r"gone\.png could be read at ingest but not now \(there is no such"):
        decode_seconds(samples, Execution())
