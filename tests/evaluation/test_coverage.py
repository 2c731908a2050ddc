"""The accuracy of the surest answers."""

from dataclasses import replace

import numpy as np
import pytest
from made_predictions import predictions_of
from scipy.stats import binomtest

from graftline.evaluation.class_curves import reliability
from graftline.evaluation.coverage import accuracy_at, coverage_curve
from graftline.evaluation.metrics import accuracy_interval


def test_values_derived_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45]])
    labels = np.array([0, 0, 0, 1, 1])  # the second and the last are mistakes
    coverage, accuracy = coverage_curve(predictions_of(probabilities, labels))
    np.testing.assert_allclose(coverage, [0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_allclose(accuracy, [1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])


def test_equal_probabilities_do_not_depend_on_the_order() -> None:
    labels = np.array([0, 0, 1, 1])
    same = np.tile([0.7, 0.3], (4, 1))
    for order in ([0, 1, 2, 3], [2, 3, 0, 1]):
        np.testing.assert_allclose(coverage_curve(predictions_of(same, labels[order]))[1], 0.5)


def test_the_interval_is_wilsons() -> None:
    probabilities = np.column_stack([np.linspace(0.99, 0.51, 100), 1 - np.linspace(0.99, 0.51, 100)])
    labels = np.repeat([0, 1], 50)
    surest = accuracy_at(predictions_of(probabilities, labels), 0.6)
    assert surest.value == pytest.approx(5 / 6)
    assert (surest.low, surest.high) == pytest.approx((0.7196, 0.9069), abs=1e-3)
    assert accuracy_at(predictions_of(probabilities[:1], labels[:1]), 0.5).value == 1


def test_images_of_one_group_count_as_fewer() -> None:
    """The surest half of 20 groups of 10 images, each with a hit rate of its own, 100 times."""
    generator = np.random.default_rng(0)
    groups, sure = np.repeat(np.arange(20), 10), np.tile([0.9, 0.6], 100) + np.linspace(0, 0.05, 200)
    labels, names = np.zeros(200, np.int64), [f"patient {number}" for number in groups]
    held = alone = 0
    for _ in range(100):
        right = generator.random(200) < generator.beta(4, 1, 20)[groups]
        given = predictions_of(
            np.column_stack([np.where(right, sure, 1 - sure), np.where(right, 1 - sure, sure)]), labels
        )
        surest, by_image = accuracy_at(replace(given, groups=names), 0.5), accuracy_at(given, 0.5)
        assert surest.value == by_image.value == coverage_curve(given)[1][99]
        held += surest.low <= 0.8 <= surest.high
        alone += by_image.low <= 0.8 <= by_image.high
    assert 90 <= held <= 99
    assert alone < 85, "each image for itself"


def test_a_bin_of_the_reliability_diagram_counts_groups_too() -> None:
    generator = np.random.default_rng(0)
    right = generator.random(200) < generator.beta(4, 1, 20)[np.repeat(np.arange(20), 10)]
    sure = np.tile([0.9, 0.75], 100)
    given = predictions_of(
        np.column_stack([np.where(right, sure, 1 - sure), np.where(right, 1 - sure, sure)]), np.zeros(200, np.int64)
    )
    alone = reliability(given)
    grouped = reliability(replace(given, groups=[f"patient {number // 10}" for number in range(200)]))
    for row, rows in enumerate((sure < 0.8, sure > 0.8)):
        wilson = binomtest(int(right[rows].sum()), 100).proportion_ci(method="wilson")
        assert (alone.low[row], alone.high[row]) == pytest.approx((wilson.low, wilson.high), abs=1e-5)
        assert grouped.right[row] == alone.right[row] == right[rows].mean()
        by_group = accuracy_interval(right[rows].astype(float), np.repeat(np.arange(20), 5))
        assert (grouped.low[row], grouped.high[row]) == pytest.approx((by_group.low, by_group.high))
    assert (grouped.high - grouped.low > 1.2 * (alone.high - alone.low)).all()
