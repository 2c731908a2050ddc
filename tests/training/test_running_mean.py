"""WeightedMean over an epoch, against numpy, in one process and in two."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn

from graftline.training.running_mean import WeightedMean

RNG = np.random.default_rng(0)
LOSSES = RNG.normal(2, 1, 10).astype(np.float32)
WEIGHTS = RNG.random(10).astype(np.float32)


def count(means: WeightedMean, images: slice) -> None:
    losses, weights = torch.from_numpy(LOSSES[images]), torch.from_numpy(WEIGHTS[images])
    means.add(weights.sum(), loss=(losses * weights).sum(), square=(losses**2 * weights).sum())


def expected() -> dict[str, float]:
    values = {"loss": LOSSES, "square": LOSSES**2}
    return {name: float(np.average(value, weights=WEIGHTS)) for name, value in values.items()}


def test_batches_of_unequal_weight_make_the_mean_of_all() -> None:
    means = WeightedMean("loss", "square")
    for images in (slice(0, 7), slice(7, 10)):
        count(means, images)
    assert means.local() == pytest.approx(expected(), rel=1e-6)
    assert {name: float(value) for name, value in means.reduced().items()} == pytest.approx(means.local())
    means.reset()
    assert means.local() == {}


def test_several_numbers_are_averaged_at_once() -> None:
    means = WeightedMean("loss", losses=3)
    for weight in (1.0, 3.0):
        means.add(weight, loss=torch.tensor(2 * weight), losses=weight * torch.tensor([weight, 1.0, 0.0]))
    reduced = means.reduced()
    assert reduced["loss"] == 2
    assert reduced["losses"].tolist() == [2.5, 1.0, 0.0]
    assert WeightedMean(losses=3).reduced()["losses"].isnan().all()


def test_many_small_numbers_are_not_lost() -> None:
    means = WeightedMean("loss")
    means.add(1, loss=torch.tensor(2.0**25))
    for _ in range(100):
        means.add(1, loss=torch.tensor(1.0))  # float32 would stay at 2^25
    assert means.local()["loss"] * 101 == pytest.approx(2.0**25 + 100, rel=1e-12)


def test_what_is_no_number_stays_none() -> None:
    means = WeightedMean("loss", "accuracy")
    means.add(2, loss=torch.tensor(float("nan")), accuracy=torch.tensor(1.0))
    means.add(2, loss=torch.tensor(1.0), accuracy=torch.tensor(1.0))
    assert np.isnan(means.local()["loss"])
    assert means.local()["accuracy"] == 0.5


def _process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    means = WeightedMean("loss", "square")
    count(means, slice(0, 7) if rank == 0 else slice(7, 10))
    torch.save(means.reduced(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_two_processes_make_the_mean_of_all(tmp_path: Path) -> None:
    spawn(_process, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert {name: float(value) for name, value in found.items()} == pytest.approx(expected(), rel=1e-6)
