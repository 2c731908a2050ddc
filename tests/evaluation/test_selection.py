"""Greedy selection against all that could have been chosen."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
from sklearn.metrics import log_loss

from graftline.bundle.grid import Average, mean_logits
from graftline.bundle.predictor import softmax
from graftline.errors import UserError
from graftline.evaluation.selection import LEAST_SHARE, select_all, select_greedily, select_weighted


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, np.ndarray]:
    """Five members of 120 images and 3 classes: two that err on different images, two copies, one that guesses."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 120)
    truth = np.eye(3)[labels]
    logits = generator.normal(0, 1, (5, 120, 3))
    logits[0, :80] += 4 * truth[:80]
    logits[1, 40:] += 4 * truth[40:]
    logits[2:4] = logits[0]
    return logits.astype(np.float32), labels


def loss_of(logits: np.ndarray, labels: np.ndarray, members: tuple[int, ...]) -> float:
    mean = np.mean([softmax(logits[number].astype(np.float64)) for number in members], axis=0)
    return float(log_loss(labels, mean))


def test_what_is_chosen_is_as_good_as_the_best_of_all_ensembles(made: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = made
    chosen = select_greedily(logits, labels, [1.0] * 5)
    best = min(
        loss_of(logits, labels, members)
        for size in range(1, 7)
        for members in combinations_with_replacement((0, 1, 4), size)  # 2 and 3 are as 0
    )
    assert chosen.loss <= best + 1e-4
    assert chosen.loss < min(chosen.alone)
    assert {0, 1} <= set(chosen.chosen) <= {0, 1, 4}
    assert sum(chosen.shares) == pytest.approx(1)
    assert chosen.alone[chosen.best] == min(chosen.alone)


def test_losses_are_scikit_learns(made: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = made
    everyone = select_all(logits, labels)
    assert everyone.shares == (0.2,) * 5
    assert everyone.loss == pytest.approx(loss_of(logits, labels, (0, 1, 2, 3, 4)))
    assert everyone.alone == pytest.approx([loss_of(logits, labels, (number,)) for number in range(5)])


def geometric_loss(logits: np.ndarray, labels: np.ndarray, members: tuple[int, ...]) -> float:
    """By the book: the product of the probabilities, to the power of one over their number, rescaled."""
    mean = np.prod([softmax(logits[number].astype(np.float64)) for number in members], axis=0) ** (1 / len(members))
    return float(log_loss(labels, mean / mean.sum(axis=1, keepdims=True)))


def test_logits_are_averaged_likewise(made: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = made
    everyone = select_all(logits, labels, "logits")
    assert everyone.loss == pytest.approx(geometric_loss(logits, labels, (0, 1, 2, 3, 4)))
    assert everyone.alone == pytest.approx(select_all(logits, labels).alone)
    chosen = select_greedily(logits, labels, [1.0] * 5, average="logits")
    best = min(
        geometric_loss(logits, labels, members)
        for size in range(1, 7)
        for members in combinations_with_replacement((0, 1, 4), size)
    )
    assert chosen.loss <= best + 1e-4
    assert chosen.loss != pytest.approx(select_greedily(logits, labels, [1.0] * 5).loss, abs=1e-3)


def test_a_budget_is_kept_and_a_member_taken_again_costs_nothing(made: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = made
    times = [3.0, 5.0, 9.0, 9.0, 2.0]
    for budget in (3.0, 5.0, 7.0, 8.0, 30.0):
        chosen = select_greedily(logits, labels, times, budget).chosen
        assert sum(times[number] for number in chosen) <= budget
    assert select_greedily(logits, labels, times, 8.0).loss < select_greedily(logits, labels, times, 5.0).loss
    with pytest.raises(UserError, match=r"of 1 ms per image cannot be: the fastest member alone takes 2\.0 ms here"):
        select_greedily(logits, labels, times, 1.0)


def test_one_member_is_itself(made: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = made
    assert select_greedily(logits[:1], labels, [1.0]).shares == (1.0,)
    assert select_greedily(logits[[0, 2]], labels, [1.0, 1.0]).shares == (1.0, 0.0)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_shares_have_the_lowest_log_loss_of_all(made: tuple[np.ndarray, np.ndarray], average: Average) -> None:
    logits, labels = made
    logits = logits[[0, 1, 4]]
    chosen = select_weighted(logits, labels, average)
    assert sum(chosen.shares) == pytest.approx(1)
    tried = [
        log_loss(labels, softmax(mean_logits(logits, np.array([first, second, 100 - first - second]) / 100, average)))
        for first in range(2, 100, 4)
        for second in range(1, 100 - first + 1, 4)
    ]
    assert chosen.loss <= min(tried) + 1e-6
    assert chosen.loss == pytest.approx(
        log_loss(labels, softmax(mean_logits(logits, np.array(chosen.shares), average))), abs=1e-6
    )
    assert chosen.loss <= select_greedily(logits, labels, [1.0] * 3, average=average).loss + 1e-6
    assert chosen.alone == pytest.approx(select_all(logits, labels, average).alone)


def test_a_member_that_brings_nothing_gets_no_share(made: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = made
    wrong = np.roll(logits[:1], 1, axis=2)  # sure of another class
    chosen = select_weighted(np.concatenate([logits[:2], wrong]), labels)
    assert chosen.chosen == [0, 1]
    assert all(share == 0 or share >= LEAST_SHARE for share in chosen.shares)
    assert select_weighted(logits[:1], labels).shares == (1.0,)
