"""Schedules are pure functions of the step."""

import itertools

import pytest

from graftline.training.schedule import constant, warmup_cosine


def test_warm_up_reaches_one_and_never_starts_at_zero() -> None:
    factors = [warmup_cosine(step, 100, warmup_fraction=0.1) for step in range(10)]
    assert factors == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


def test_cosine_is_half_way_in_the_middle_and_ends_at_the_final_factor() -> None:
    assert warmup_cosine(10, 100, warmup_fraction=0.1, final_factor=0.0) == 1.0
    assert warmup_cosine(55, 100, warmup_fraction=0.1, final_factor=0.0) == pytest.approx(0.5)
    assert warmup_cosine(100, 100, final_factor=0.01) == pytest.approx(0.01)
    assert warmup_cosine(500, 100, final_factor=0.01) == pytest.approx(0.01), "past the end it stays there"


def test_cosine_only_falls_after_the_warm_up() -> None:
    factors = [warmup_cosine(step, 57, warmup_fraction=0.1) for step in range(6, 58)]
    assert all(later < earlier for earlier, later in itertools.pairwise(factors))


def test_no_warm_up_and_a_single_step() -> None:
    assert warmup_cosine(0, 1, warmup_fraction=0.0) == 1.0
    assert constant(0, 1) == constant(99, 100) == 1.0
