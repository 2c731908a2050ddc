"""The accuracy of the surest answers."""

import numpy as np
import pytest
from made_predictions import predictions_of

from graftline.evaluation.coverage import accuracy_at, coverage_curve


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
