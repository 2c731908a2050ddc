"""A soup of trained networks: one network of mean weights, whose statistics are measured anew."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ensembled import shifted
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss
from workplace import Workplace

from graftline.bundle.calibration import UNCALIBRATED
from graftline.bundle.ensemble import Ensemble
from graftline.bundle.grid import Grid
from graftline.bundle.layout import FREEZE_CHECKS, read_description
from graftline.bundle.predictor import Predictor, softmax
from graftline.errors import UserError
from graftline.pipeline.ensembles.members import Members
from graftline.pipeline.ensembles.result import EnsembleResult
from graftline.pipeline.ensembles.soup import SoupMaker

pytestmark = pytest.mark.long


def test_a_soup_is_one_network_of_mean_weights(run: Callable[..., EnsembleResult], made: EnsembleResult) -> None:
    same = [str(made.directory / "members" / number) for number in ("1", "3")]
    cooked = run(f"runs={','.join(same)}", "choose=soup", "crops=mirror", "tracking.register=false")
    assert cooked.selection.shares == (0.0, 0.0, 1.0)
    assert isinstance(cooked.predictor, Ensemble)
    assert len(cooked.predictor.members) == 1
    assert cooked.rows[0].members == (cooked.selection.best,) != (2,)
    with pytest.raises(UserError, match="No soup of these members is as good as the best of them"):  # of other weights
        run(f"runs={','.join(same)}", "choose=greedy_soup")
    other = str(made.directory / "members" / "2")
    with pytest.raises(UserError, match=r"has another preprocessing than .*, and a soup averages the weights of one"):
        run(f"runs={same[0]},{other}", "choose=soup")


def test_a_soup_measures_its_statistics_in_batches_of_one_size(
    made: EnsembleResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(made.predictor, Ensemble)
    members = Members((), (), (), made.predictor.members)
    count = made.version.num_images("train")
    monkeypatch.setattr("graftline.pipeline.ensembles.soup.MEASURED_BATCH", count - 1)  # one image more than a batch
    batches = list(SoupMaker(members, np.empty(0), lambda _: np.empty(0), made.version)._batches())
    assert [len(one) for one in batches] == [(count + 1) // 2, count // 2]


def test_a_greedy_soup_takes_what_makes_it_better_however_members_are_calibrated(
    run: Callable[..., EnsembleResult], made: EnsembleResult, ensemble_place: Workplace
) -> None:
    """The biases of two members lie on both sides of the best ones, those of a third far away."""
    source, samples = made.directory / "members" / "1" / "bundle", made.version.samples("validation")
    plain = replace(Predictor.from_directory(source), calibration=UNCALIBRATED)
    logits, line = plain.logits(samples.paths).astype(float), np.array([1.0, -1.0, 0.0])

    def loss(step: float, temperature: float = 1) -> float:
        return float(log_loss(samples.labels, softmax((logits + step * line) / temperature)))

    best = minimize_scalar(loss).x
    temperature = minimize_scalar(lambda given: loss(best, given), bounds=(0.1, 10)).x
    steps = [best - 0.01, best + 5, best + 0.01]
    members = [shifted(source, ensemble_place.root / f"at{step:.2f}", step * line, temperature) for step in steps]
    assert max(loss(steps[0], temperature), loss(steps[2], temperature)) < loss(best), "calibrated they look better"
    cooked = run(f"runs={','.join(map(str, members))}", "choose=greedy_soup", "tracking.register=false")
    assert cooked.selection.alone == pytest.approx([loss(step) for step in [*steps, best]], abs=1e-5)
    card = read_description(cooked.directory / "soup")["card"]
    assert sorted(card["soup"]) == sorted(map(str, members[::2]))
    assert card[FREEZE_CHECKS] == [0, 0], "that of each of the two"
    trained = read_description(source)["card"]
    for key in ("dataset_digest", "validation_digest", "test_digest"):  # which tell what it may be used with
        assert card[key] == trained[key]


def test_a_soup_classifies_the_validation_images_once_with_each_network(
    run: Callable[..., EnsembleResult], made: EnsembleResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, classify = list[tuple[int, int]](), Grid.logits

    def counted(grid: Grid, images: Sequence[str], *rest: Any) -> np.ndarray:
        if rest[1:]:  # progress is shown: not the few images whose time is taken
            passes.append((len(grid.members), len(images)))
        return classify(grid, images, *rest)

    monkeypatch.setattr(Grid, "logits", counted)
    same = [str(made.directory / "members" / number) for number in ("1", "3")]
    cooked = run(f"runs={','.join(same)}", "choose=soup", "tracking.register=false")
    count = cooked.version.num_images("validation")
    assert [members for members, images in passes if images == count] == [2, 1]
