"""What the gate decides by chance: of few images or groups nothing is shown, and a guard hardly ever errs."""

from dataclasses import replace

import numpy as np
import pytest
from gated import GATE, guard, made

from benchmarks.promotion import (
    SKILL,
    better_by_chance,
    equal_in_groups,
    guards_hold,
    less_accurate,
    results,
    skill_of,
)
from graftline.evaluation.gate import Gate, _compare, examine
from graftline.evaluation.gate_guards import Guard
from graftline.evaluation.paired import accuracy_difference
from graftline.evaluation.primary import primary_guard


@pytest.mark.parametrize(("images", "passed"), [(1, False), (5, False), (6, True)])
def test_a_handful_of_images_shows_nothing(images: int, passed: bool) -> None:
    found, champion, _ = made(images=images)
    result = examine(GATE, found, replace(champion, name="version 2"), champion)  # the same answers to all of them
    first = result.guards[0]
    assert (first.name, first.passed) == ("log loss", passed)
    if not passed:
        assert "cannot show which model is better, 6 are the fewest" in first.reason


@pytest.mark.parametrize(("groups", "passed"), [(2, False), (5, False), (6, True)])
def test_nor_do_many_images_of_a_handful_of_groups(groups: int, passed: bool) -> None:
    found, champion, challenger = made((0.5, 3.0), images=60)
    found = replace(found, groups=[str(number % groups) for number in range(60)])
    result = examine(replace(GATE, rule="better"), found, challenger, champion)
    assert result.guards[0].passed == passed
    if not passed:
        assert result.guards[0].reason.startswith(
            f"{groups} groups of test images cannot show which model is better, 6 are the fewest: add groups, or force"
        )
    alone = replace(found, groups=["0"] * 60)
    assert (
        "; all of these are of one group, so that nothing is known"
        in examine(GATE, alone, challenger, champion).compared
    )


@pytest.mark.parametrize(("groups", "each"), [(6, 10), (8, 1)])
@pytest.mark.long
def test_few_images_or_groups_let_an_equal_model_pass_once_in_forty_times(groups: int, each: int) -> None:
    """A part of benchmarks/promotion.py: of 400, 10 at most are expected to pass, 20 or more once in 300 such tests."""
    assert better_by_chance(groups, each, 400, Gate(resamples=100)) < 20 / 400


def test_an_equal_model_is_hardly_ever_refused_by_guards_and_a_worse_one_never_promoted() -> None:
    """A part of benchmarks/promotion.py, whose rates docs/promotion.md has."""
    gate = Gate(resamples=100)
    equal = results(40, gate, (SKILL, SKILL), 300)
    assert sum(not guards_hold(one) for one in equal) <= 4  # 5 % at most are expected: more than 4 in 1 of 20,000
    assert not any(one.passed for one in results(15, gate, (SKILL, skill_of(0.15)), 1000))
    assert sum(one.passed for one in results(10, gate, (SKILL, skill_of(-0.15)), 1000)) >= 9


def test_the_margin_does_not_shrink_to_nothing_with_the_loss_of_the_champion() -> None:
    """At 98.6 % right and a log loss of 0.038; see docs/promotion.md."""

    def decided(tests: int, skills: tuple[float, float], least_margin: float) -> list[Guard]:
        gate, found = Gate(), [made(skills, 650, seed) for seed in range(tests)]
        limits = (gate.metric, gate.rule, gate.margin, least_margin, gate.floor, 100, 0)
        return [
            primary_guard(*limits, _compare(images, challenger, champion)) for images, champion, challenger in found
        ]

    assert sum(one.passed for one in decided(30, (2.2, 2.2), 0.02)) >= 11, "without a least margin 3"
    assert not any(one.passed for one in decided(10, (2.2, less_accurate(2.2, 1.0)), 0.02))
    for one in decided(10, (3.0, 3.0), 0.0):
        assert "margin of 0.000:" not in one.reason


def test_the_interval_of_an_accuracy_difference_holds_what_it_says() -> None:
    generator = np.random.default_rng(0)
    below = 0
    for _ in range(3000):
        common, one, other = generator.random((3, 60)) < np.array([0.8, 0.5, 0.5])[:, None]
        difference = accuracy_difference(common | one, common | other, 2.576)
        below += difference.high < 0
    assert below <= 30, "as good, and said to be worse at the one-sided 0.5 %"


def test_images_of_one_group_count_as_one_for_accuracies_too() -> None:
    generator, groups, refused = np.random.default_rng(0), np.arange(40).repeat(16), 0
    for _ in range(400):
        one, other = (generator.random((2, 40)) < 0.85).repeat(16, axis=1)
        refused += accuracy_difference(one, other, 1.96, groups).high < 0
    assert refused < 20, "as good, and said to be worse at the one-sided 2.5 %"
    found, (champion, challenger) = equal_in_groups(40, 16, generator)
    whole, alone = (
        guard(examine(GATE, images, challenger, champion), "accuracy").figures
        for images in (found, replace(found, groups=None))
    )
    assert whole[0] == alone[0]
    assert whole[2] - whole[1] > 2 * (alone[2] - alone[1])


@pytest.mark.parametrize("each", [5, 1])
def test_one_group_shows_nothing_and_groups_of_one_image_are_images(each: int) -> None:
    one, other = np.zeros(20, dtype=bool), np.ones(20, dtype=bool)
    nothing = accuracy_difference(one, other, 1.96, np.zeros(20, dtype=np.int64))
    assert (nothing.value, nothing.low, nothing.high) == (-1.0, -1.0, 1.0)
    alone, groups = accuracy_difference(one, other, 1.96), accuracy_difference(one, other, 1.96, np.arange(20) // each)
    assert groups.low == -1.0
    assert (groups.high < 0) == (each == 1), "four of four are no proof"
    assert alone.high < 0
