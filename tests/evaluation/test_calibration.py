"""Calibration: against scikit-learn and scipy, in simulations whose temperature is known, and with too few images."""

from dataclasses import replace

import numpy as np
import pytest
from made_predictions import predictions_of
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss

from graftline.bundle.calibration import UNCALIBRATED, Calibration
from graftline.evaluation.bootstrap import multiplicities
from graftline.evaluation.calibration import (
    _folds,
    calibration_error,
    fit_calibration,
    fit_temperature,
    fit_vector,
    square_gaps,
)
from graftline.evaluation.predictions import Predictions


def draw(
    images: int, classes: int, temperature: float = 1.0, seed: int = 0, bias: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are too large by a factor, of the first class by a bias too, and labels of the right ones."""
    generator = np.random.default_rng(seed)
    true = generator.normal(0, 2, (images, classes))
    chances = softmax(true, axis=1).cumsum(axis=1)
    labels = (chances > generator.random((images, 1))).argmax(axis=1)
    return temperature * true + bias * (np.arange(classes) == 0), labels


def made(logits: np.ndarray, labels: np.ndarray) -> Predictions:
    return predictions_of(softmax(logits, axis=1), labels)


class Given(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier for scikit-learn whose inputs are the logits."""

    def fit(self, logits: np.ndarray, labels: np.ndarray) -> "Given":  # noqa: ARG002 - scikit-learn's signature
        self.classes_ = np.arange(logits.shape[1])
        return self

    def decision_function(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def predict(self, logits: np.ndarray) -> np.ndarray:
        best: np.ndarray = logits.argmax(axis=1)
        return best


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_the_temperature_is_scikit_learns(temperature: float) -> None:
    logits, labels = draw(400, 4, temperature)
    ours = fit_temperature(logits, labels)
    theirs = CalibratedClassifierCV(FrozenEstimator(Given().fit(logits, labels)), method="temperature")
    theirs.fit(logits, labels)
    np.testing.assert_allclose(softmax(ours.apply(logits), axis=1), theirs.predict_proba(logits), atol=1e-4)
    assert ours.temperature == pytest.approx(temperature, rel=0.2)


def test_the_vector_is_that_of_a_search_without_derivatives() -> None:
    logits, labels = draw(300, 3, 2.0, bias=1.5)

    def loss(parameters: np.ndarray) -> float:
        return float(log_loss(labels, softmax(parameters[:3] * logits + parameters[3:], axis=1)))

    ours = fit_vector(logits, labels)
    found = minimize(loss, np.array([0.5, 0.5, 0.5, 0, 0, 0]), method="Powell", options={"ftol": 1e-10, "maxfev": 9000})
    assert loss(np.array(ours.scales + ours.biases)) == pytest.approx(found.fun, abs=1e-6)
    expected = softmax(found.x[:3] * logits + found.x[3:], axis=1)
    np.testing.assert_allclose(softmax(ours.apply(logits), axis=1), expected, atol=2e-3)


def test_a_known_temperature_is_found_again() -> None:
    found = [fit_calibration(made(*draw(400, 3, 2.0, seed))).calibration.temperature for seed in range(12)]
    assert np.mean(found) == pytest.approx(2.0, abs=0.1)
    assert np.std(found) < 0.3


def test_what_is_kept_helps_on_other_images_and_changes_no_answer() -> None:
    logits, labels = draw(400, 3, 2.0)
    fit = fit_calibration(made(logits, labels))
    assert not fit.calibration.scales
    assert fit.log_loss_change is not None
    assert fit.standard_error is not None
    assert fit.log_loss_change < -3 * fit.standard_error
    assert fit.error_before is not None
    assert fit.error_after is not None
    assert fit.error_after.high < fit.error_before.value
    assert "a temperature of 2." in fit.sentence or "a temperature of 1." in fit.sentence
    others, other_labels = draw(5000, 3, 2.0, seed=1)
    calibrated = fit.calibration.apply(others)
    np.testing.assert_array_equal(calibrated.argmax(axis=1), others.argmax(axis=1))
    change = log_loss(other_labels, softmax(calibrated, axis=1)) - log_loss(other_labels, softmax(others, axis=1))
    assert change == pytest.approx(fit.log_loss_change, abs=4 * fit.standard_error)


def test_probabilities_that_are_right_lose_next_to_nothing() -> None:
    others, other_labels = draw(5000, 3, seed=99)
    before, changes, vectors = log_loss(other_labels, softmax(others, axis=1)), [], 0
    refused = 0  # that lower the log loss by chance
    for seed in range(20):
        fit = fit_calibration(made(*draw(200, 3, seed=seed)))
        vectors += bool(fit.calibration.scales)
        changes.append(log_loss(other_labels, softmax(fit.calibration.apply(others), axis=1)) - before)
        is_kept = fit.calibration != UNCALIBRATED
        assert ("stay as the network gives them" in fit.sentence) != is_kept
        assert fit.log_loss_change is not None
        assert fit.standard_error is not None
        assert fit.error_before is not None
        assert fit.error_after is not None
        if not fit.calibration.scales:
            is_sure, is_lower = fit.log_loss_change < -fit.standard_error, fit.log_loss_change < 0
            assert is_kept == (is_sure or (is_lower and fit.error_after.value <= fit.error_before.value))
            refused += is_lower and not is_kept
    assert np.mean(changes) < 0.003
    assert vectors <= 2
    assert refused > 0


def test_a_class_that_is_favored_takes_a_vector() -> None:
    logits, labels = draw(600, 3, bias=3.0)
    fit = fit_calibration(made(logits, labels))
    assert len(fit.calibration.scales) == 3
    assert "a scale and a bias for each class" in fit.sentence
    others, other_labels = draw(3000, 3, bias=3.0, seed=1)
    before, after = (log_loss(other_labels, softmax(one, axis=1)) for one in (others, fit.calibration.apply(others)))
    assert after < before - 0.1


def test_what_the_training_weighed_is_not_taken_back() -> None:
    """Logits that favor a rare class, as class weights make them: the biases would give the frequencies back."""
    logits, labels = draw(600, 3, bias=3.0)
    fit = fit_calibration(made(logits, labels), weighed=True)
    assert not fit.calibration.scales
    assert fit.calibration.temperature > 1.5  # it is still less sure
    assert fit.sentence.endswith("; as the training was weighed, no bias of a class is fitted.")
    np.testing.assert_array_equal(fit.calibration.apply(logits).argmax(axis=1), logits.argmax(axis=1))


def test_too_little_is_one_sentence() -> None:
    logits, labels = draw(400, 3, 2.0)
    few = fit_calibration(made(logits[:3], labels[:3]))
    assert few.calibration == UNCALIBRATED
    assert few.sentence == (
        "The probabilities stay as the network gives them: 3 validation images are too few to calibrate them "
        "(50 are enough)."
    )
    right = fit_calibration(made(logits, logits.argmax(axis=1)))
    assert right.calibration == UNCALIBRATED
    assert "classifies all 400 validation images rightly" in right.sentence
    assert "error_before" not in right.to_json()


def test_a_class_without_images_and_a_probability_of_zero() -> None:
    logits, labels = draw(200, 3, 2.0)
    rows = labels > 0
    absent = fit_calibration(made(logits[rows], labels[rows]))
    assert not absent.calibration.scales
    only = fit_calibration(made(logits[labels == 1], labels[labels == 1]))
    assert np.isfinite(only.calibration.temperature)
    probabilities = softmax(logits, axis=1)
    probabilities[0] = [0, 0.5, 0.5]
    zero = fit_calibration(predictions_of(probabilities, np.maximum(labels, np.arange(200) == 0)))
    assert zero.log_loss_change is not None
    assert np.isfinite(zero.log_loss_change)


def test_many_images_are_drawn_from() -> None:
    logits, labels = draw(2200, 500, 1.5)
    fit = fit_calibration(made(logits, labels))
    assert fit.num_images == 2000
    assert fit.calibration.temperature == pytest.approx(1.5, abs=0.05)


def test_the_calibration_error_is_that_of_a_loop() -> None:
    logits, labels = draw(320, 4, 2.0)
    probabilities = softmax(logits, axis=1)
    total = 0.0
    edges = np.quantile(probabilities.max(axis=1), np.arange(1, 15) / 15)
    bins = np.digitize(probabilities.max(axis=1), edges)
    for number in range(15):
        rows = np.flatnonzero(bins == number)
        gaps = (probabilities[rows].argmax(axis=1) == labels[rows]) - probabilities[rows].max(axis=1)
        total += len(rows) / 320 * (gaps.mean() ** 2 - gaps.var(ddof=1) / len(rows))
    assert calibration_error(probabilities, labels).value == pytest.approx(np.sqrt(total))


def copies(logits: np.ndarray, labels: np.ndarray, times: int) -> Predictions:
    """Return each image so many times, as the images of a group."""
    rows = np.repeat(np.arange(len(labels)), times)
    predictions = made(logits[rows], labels[rows])
    return replace(predictions, groups=[f"group {row:03}" for row in rows.tolist()])


def test_images_of_a_group_are_fitted_and_scored_together() -> None:
    """Copies tell no more than one image of each, of which a fit to the others knows nothing."""
    logits, labels = draw(120, 3, 1.3)
    predictions = copies(logits, labels, 5)
    cases = made(logits, labels), predictions, replace(predictions, groups=None)
    alone, grouped, loose = (fit_calibration(one, weighed=True).standard_error or 0.0 for one in cases)
    assert grouped == pytest.approx(alone, rel=0.3), "of other folds"
    assert 0 < loose < 0.6 * grouped, "as if copies told more"
    folds = _folds(predictions.labels, predictions.groups, 0)
    assert len(set(zip(predictions.groups or (), folds.tolist(), strict=True))) == 120


def test_chance_is_told_from_a_calibration_error_by_groups() -> None:
    """Perfect probabilities, of groups whose images are all alike: what chance adds is that of so many groups."""
    found, loose = [], []
    for seed in range(20):
        logits, labels = draw(60, 3, seed=seed)
        group = np.repeat(np.arange(60), 10)
        probabilities = softmax(logits[group], axis=1)
        found.append(square_gaps(probabilities, labels[group], 2, 0, group)[0])
        loose.append(square_gaps(probabilities, labels[group], 2, 0)[0])
    error = np.std(found, ddof=1) / np.sqrt(20)
    assert abs(np.mean(found)) < 3 * error
    assert np.mean(loose) > 6 * error


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(30), 10)])
def test_the_interval_of_a_calibration_error_is_that_of_whole_groups(groups: np.ndarray | None) -> None:
    """Written out: the images of each group that was drawn, once for each time."""
    logits, labels = draw(300, 3, 2.0)
    probabilities = softmax(logits, axis=1)
    units = np.arange(300) if groups is None else groups
    drawn = square_gaps(probabilities, labels, 20, 3, groups)[1]
    counts = np.concatenate(list(multiplicities(300, 20, 3, groups)), axis=1)
    confidences = probabilities.max(axis=1)
    bins = np.digitize(confidences, np.quantile(confidences, np.arange(1, 15) / 15))
    gaps = (probabilities.argmax(axis=1) == labels) - confidences
    for value, count in zip(drawn, counts.T, strict=True):
        total = 0.0
        for number in range(15):
            rows = np.repeat(np.arange(300), np.where(bins == number, count, 0))
            if len(rows) == 0:
                continue
            mean = gaps[rows].mean()
            sums = [(gaps - mean)[(bins == number) & (units == unit)].sum() for unit in units[rows]]
            share = [
                1 / ((bins == number) & (units == unit)).sum() for unit in units[rows]
            ]  # of a group that was drawn
            size = sum(share)
            chance = size / (size - 1) * sum(np.square(sums) * share) / len(rows) ** 2 if size > 1.5 else np.nan
            total += np.nan_to_num(len(rows) / 300 * (mean**2 - chance))
        assert value == pytest.approx(total)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_interval_of_the_calibration_error_covers_the_truth(temperature: float) -> None:
    logits, labels = draw(100_000, 3, temperature)
    truth = calibration_error(softmax(logits, axis=1), labels, resamples=1).value
    truth = truth if temperature != 1 else 0.0
    covered = 0
    for seed in range(60):
        logits, labels = draw(200, 3, temperature, seed=seed)
        interval = calibration_error(softmax(logits, axis=1), labels, resamples=200, seed=seed)
        covered += interval.low <= truth <= interval.high
    assert covered >= 53  # 95 % of 60 is 57; fewer than 53 would happen once in 100


def test_log_probabilities_give_the_same_calibration_as_logits() -> None:
    logits, labels = draw(300, 3, 2.0)
    shifted = logits + np.arange(300)[:, None] % 7
    assert fit_temperature(logits, labels).temperature == pytest.approx(
        fit_temperature(log_softmax(shifted, axis=1), labels).temperature, rel=1e-4
    )


def test_a_calibration_is_what_it_says() -> None:
    logits = np.array([[1.0, 4.0, -2.0]], dtype=np.float32)
    assert Calibration().apply(logits).tobytes() == logits.tobytes()
    vector = Calibration(scales=(1.0, 0.5, 2.0), biases=(0.0, 1.0, 0.0))
    np.testing.assert_array_equal(vector.apply(logits), np.array([[1, 3, -4]], dtype=np.float32))
    assert vector.apply(logits).dtype == np.float32
    for one in (Calibration(), Calibration(temperature=1.25), vector):
        assert Calibration.from_dict(one.to_dict()) == one
