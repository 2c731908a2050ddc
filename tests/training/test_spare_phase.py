"""The phase that the time after the head goes to: whose weights are kept, and by which evidence."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graftline.data.version import DatasetVersion
from graftline.freezing.plan import plan_from_depth
from graftline.training.fit_directory import FitDirectory
from graftline.training.phases import train
from graftline.training.results import MONITOR, FitHistory, PhaseResult, best_of
from graftline.training.setup import TrainingSetup

MakeSetup = Callable[..., TrainingSetup]


def phase(loss: float, losses: list[float] | None = None) -> PhaseResult:
    metrics = {"epoch": 0.0, MONITOR: loss}
    history = FitHistory([metrics], metrics, 1.0, 1)
    return PhaseResult(1, history, "", augmented=False, freeze_record={}, cache_change=None, losses=losses)


@pytest.mark.parametrize(("gain", "best"), [(0.05, 0), (0.2, 1), (-0.2, 0), (float("nan"), 0)])
def test_a_scored_phase_is_better_by_evidence(gain: float, best: int) -> None:
    """Of 100 images, on which two trainings differ by 1 and 0 in turn: a standard error of 0.1, of which 1.28 count."""
    head = np.ones(100)
    spare = head + np.tile([1.0, -1.0], 50) - gain
    assert best_of([phase(1.0, head.tolist()), phase(1.0 - gain, spare.tolist())]) == best


def test_of_phases_that_are_not_scored_the_lower_loss_is_better() -> None:
    assert best_of([phase(1.0), phase(0.99), phase(0.99)]) == 1
    assert best_of([phase(1.0), phase(0.99, [0.99] * 9)]) == 1
    assert best_of([phase(float("nan")), phase(9.0)]) == 1


def test_head_and_spare_phase_are_scored_on_the_same_images(
    make_setup: MakeSetup, judged_version: DatasetVersion, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second is as good, and not better: the weights of the first are left."""
    setup = make_setup(version=judged_version)
    network, directory = setup.graft.network, FitDirectory(tmp_path)
    head = plan_from_depth(network, 6, "", epochs=3, learning_rate=0.03)
    plans = [head, replace(head, anew=True)]
    with caplog.at_level("INFO", "graftline"):
        result = train(setup, plans, directory)
    for one in result.phases:
        assert one.losses is not None
        assert len(one.losses) == 30
        assert np.mean(one.losses) == pytest.approx(one.history.best[MONITOR], abs=1e-5)
    assert result.best_phase == 0
    assert "This phase has +0.000 (+0.000 to +0.000) in log loss against the one before: too little to keep it." in (
        caplog.messages
    )
    again = make_setup(version=judged_version)
    assert train(again, plans, directory, resume=True) == result
    state, expected = again.graft.network.state_dict(), network.state_dict()
    assert all(state[name].equal(value) for name, value in expected.items())
    unscored = train(make_setup(version=judged_version), [head, head], FitDirectory(tmp_path / "unscored"))
    assert [one.losses for one in unscored.phases] == [None, None]
