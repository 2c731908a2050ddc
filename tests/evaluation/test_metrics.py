import dataclasses

import numpy as np
import pytest
from made_predictions import predictions_of
from scipy.stats import binomtest

from graftline.errors import UserError
from graftline.evaluation.metrics import Interval, format_interval, metrics_json, score, wilson
from graftline.evaluation.notes import notes_on

pytestmark = pytest.mark.filterwarnings("error")  # no library's warning reaches the user


def separable(num_images: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_images)
    logits = generator.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += 2
    scores = np.exp(logits)
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32), labels


def test_values_derived_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
    labels = np.array([0, 0, 1, 1])  # the last is a mistake
    weights = np.array([1.0, 1.0, 1.0, 1 / 3])
    scores = score(predictions_of(probabilities, labels, ("no", "yes"), weights))
    expected = {
        "accuracy": 3 / 4,
        "accuracy_weighted": 3 / (3 + 1 / 3),
        "balanced_accuracy": (1 + 1 / 2) / 2,
        "f1_macro": (4 / 5 + 2 / 3) / 2,
        "auroc": 3 / 4,  # of the pairs (0.1, 0.4) x (0.7, 0.2), only 0.4 > 0.2 is the wrong way round
        "log_loss": -np.log([0.9, 0.6, 0.7, 0.2]).mean(),
        "brier": np.mean([0.1**2, 0.4**2, 0.3**2, 0.8**2]),
        "ece": (abs(1 - 0.9) + abs(1 - 0.6) + abs(1 - 0.7) + abs(0 - 0.8)) / 4,  # each is alone in its bin
        "precision/no": 2 / 3,
        "precision/yes": 1.0,
        "recall/no": 1.0,
        "recall/yes": 1 / 2,
    }
    assert list(scores) == list(expected)
    for name, value in expected.items():
        # torchmetrics computes the calibration error in single precision
        assert scores[name].value == pytest.approx(value, abs=1e-7 if name == "ece" else 1e-12), name


def test_intervals_agree_with_the_normal_approximation() -> None:
    probabilities, labels = separable(2000, 3, seed=0)
    scores = score(predictions_of(probabilities, labels, "abc"), resamples=4000)
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels
    losses = -np.log(probabilities[np.arange(2000), labels])
    of_a = right[labels == 0]
    for name, sample in (("accuracy", right), ("log_loss", losses), ("recall/a", of_a)):
        half = 1.96 * sample.std() / np.sqrt(len(sample))
        assert scores[name].low == pytest.approx(sample.mean() - half, abs=0.12 * half), name
        assert scores[name].high == pytest.approx(sample.mean() + half, abs=0.12 * half), name


def test_auroc_interval_agrees_with_delong() -> None:
    probabilities, labels = separable(800, 2, seed=1)
    interval = score(predictions_of(probabilities, labels, "ab"), resamples=4000)["auroc"]
    positive, negative = probabilities[labels == 1, 1], probabilities[labels == 0, 1]
    won = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    # DeLong et al. 1988, Biometrics 44(3): the variance from each image's share of pairs won
    deviation = np.sqrt(won.mean(axis=1).var() / len(positive) + won.mean(axis=0).var() / len(negative))
    assert interval.value == pytest.approx(won.mean(), abs=1e-12)
    assert (interval.high - interval.low) / 3.92 == pytest.approx(deviation, rel=0.1)


def test_the_seed_decides_and_zero_is_a_seed() -> None:
    probabilities, labels = separable(100, 3, seed=0)
    first, again, other = (
        score(predictions_of(probabilities, labels, "abc"), resamples=200, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first["log_loss"] != other["log_loss"]
    assert first["log_loss"].value == other["log_loss"].value


def test_without_weights_there_is_no_weighted_accuracy() -> None:
    probabilities, labels = separable(50, 3, seed=0)
    assert "accuracy_weighted" not in score(predictions_of(probabilities, labels, "abc"), resamples=100)


def test_a_class_without_images_or_predictions_is_left_out_and_named() -> None:
    probabilities, labels = separable(300, 4, seed=0)
    labels[labels == 3] = 0  # no images of d, though it is predicted
    probabilities[:, 2] = 0.001  # c is never predicted
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    scores = score(predictions_of(probabilities, labels, "abcd"), resamples=200)
    assert "recall/d" not in scores
    assert scores["precision/d"].value == scores["precision/d"].low == 0 < scores["precision/d"].high
    assert "precision/c" not in scores
    assert scores["recall/c"].value == scores["recall/c"].low == 0 < scores["recall/c"].high < 0.1
    assert scores["balanced_accuracy"].value == pytest.approx(
        np.mean([scores[f"recall/{name}"].value for name in "abc"]), abs=1e-12
    )
    assert all(np.isfinite([one.value, one.low, one.high]).all() for one in scores.values())
    notes = notes_on(predictions_of(probabilities, labels, "abcd"), scores)
    assert "No images of “d”: it has no recall and no part in the macro averages of recall and AUROC." in notes
    assert "Never predicted, so without a precision: “c”." in notes


def test_one_class_alone_has_no_auroc() -> None:
    probabilities, _ = separable(30, 2, seed=0)
    scores = score(predictions_of(probabilities, np.zeros(30, dtype=np.int64), "ab"), resamples=100)
    assert "auroc" not in scores
    assert "recall/b" not in scores
    assert scores["balanced_accuracy"].value == scores["recall/a"].value == scores["accuracy"].value


def test_a_rare_class_has_an_interval_and_a_note() -> None:
    probabilities, labels = separable(100, 3, seed=0)
    labels[labels == 2] = 1
    labels[:2] = 2
    scores = score(predictions_of(probabilities, labels, "abc"), resamples=300)
    assert 0 <= scores["recall/c"].low <= scores["recall/c"].value <= scores["recall/c"].high <= 1
    assert any(
        note.startswith("Fewer than 10 images of “c” (2):")
        for note in notes_on(predictions_of(probabilities, labels, "abc"), scores)
    )


def test_no_mistakes_are_no_proof() -> None:
    labels = np.arange(150) % 3
    probabilities = np.full((150, 3), 0.05)
    probabilities[np.arange(150), labels] = 0.9
    scores = score(predictions_of(probabilities, labels, "abc"), resamples=100)
    assert scores["accuracy"].low == pytest.approx(0.975, abs=1e-3)
    predictions = predictions_of(probabilities, labels, "abc")
    grouped = dataclasses.replace(predictions, groups=[f"patient {number % 10}" for number in range(150)])
    for given, units in ((predictions, "150 images"), (grouped, "10 groups of images")):
        assert any(note.endswith(f"the intervals are Wilson's, of {units}.") for note in notes_on(given, scores))


def test_wilsons_interval_holds_its_share() -> None:
    for share in (0.0, 1.0):
        for size in range(1, 1_000):
            interval = wilson(share, size)
            assert 0 <= interval.low <= share <= interval.high <= 1


def test_what_is_all_right_or_all_wrong_has_an_interval_with_a_width() -> None:
    labels = np.repeat([0, 1, 2], [12, 60, 8])
    probabilities = np.full((80, 3), 0.05)
    probabilities[np.arange(80), np.where(labels == 2, 0, labels)] = 0.9
    scores = score(predictions_of(probabilities, labels, "abc", np.ones(80)), resamples=100)
    for name, right, count in (("recall/a", 12, 12), ("recall/b", 60, 60), ("precision/b", 60, 60), ("recall/c", 0, 8)):
        expected = binomtest(right, count).proportion_ci(method="wilson")
        assert (scores[name].low, scores[name].high) == pytest.approx((expected.low, expected.high), abs=1e-6), name
    assert scores["recall/a"].low < 0.8
    probabilities[np.arange(80), 0], probabilities[np.arange(80), labels] = 0.05, 0.9
    perfect = predictions_of(probabilities, labels, "abc", np.ones(80))
    alone = score(perfect, resamples=100)
    assert {one for one in alone if alone[one].low == alone[one].high} == {"ece"}, "all images are equally sure"
    assert alone["accuracy"].low == alone["accuracy_weighted"].low == pytest.approx(80 / (80 + 1.96**2), abs=1e-4)
    assert alone["recall/c"].low < alone["balanced_accuracy"].low < alone["accuracy"].low
    grouped = dataclasses.replace(perfect, groups=[str(number % 10) for number in range(80)])
    assert score(grouped, resamples=100)["accuracy"].low == pytest.approx(10 / (10 + 1.96**2), abs=1e-4)


def test_a_score_outside_its_own_interval_is_explained() -> None:
    probabilities, labels = separable(50, 2, seed=0)
    scores = score(predictions_of(probabilities, labels, "ab"), resamples=100) | {"ece": Interval(0.01, 0.02, 0.03)}
    notes = notes_on(predictions_of(probabilities, labels, "ab"), scores)
    assert any(note.startswith("The value lies outside its own interval for calibration error") for note in notes)


def test_many_classes_are_named_in_short() -> None:
    probabilities, labels = separable(40, 30, seed=0)
    names = [f"c{number}" for number in range(30)]
    labels[:] = 0
    scores = score(predictions_of(probabilities, labels, names), resamples=100)
    notes = notes_on(predictions_of(probabilities, labels, names), scores)
    assert any("“c8” and 21 more: they have no recall" in note for note in notes)


def test_single_precision_is_no_trouble() -> None:
    probabilities, labels = separable(100, 3, seed=0)
    exact = predictions_of(probabilities, labels, "abc")
    rounded = dataclasses.replace(exact, logits=exact.logits.astype(np.float32))
    assert rounded.probabilities.dtype == np.float32
    plain, scaled = (score(some, resamples=100) for some in (exact, rounded))
    assert scaled["log_loss"].value == pytest.approx(plain["log_loss"].value, abs=1e-6)
    assert scaled["brier"].value == pytest.approx(plain["brier"].value, abs=1e-6)


def test_a_diverged_model_is_named() -> None:
    probabilities, labels = separable(10, 2, seed=0)
    probabilities[3] = np.nan
    with pytest.raises(UserError, match=r"diverged.*smaller learning rate"):
        score(predictions_of(probabilities, labels, "ab"))


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_weights_that_are_no_weights_are_named(bad: float) -> None:
    probabilities, labels = separable(10, 2, seed=0)
    weights = np.ones(10, dtype=np.float32)
    weights[3] = bad
    with pytest.raises(UserError, match="correct the table's weight column"):
        score(predictions_of(probabilities, labels, "ab", weights))
    with pytest.raises(UserError, match="correct the table's weight column"):
        score(predictions_of(probabilities, labels, "ab", np.zeros(10, dtype=np.float32)))


def test_json_and_text() -> None:
    scores = {"accuracy": Interval(0.884, 0.8604, 0.9091), "ece": Interval(0.02, 0.015, 0.06)}
    assert metrics_json(scores) == {
        "accuracy": {"value": 0.884, "low": 0.8604, "high": 0.9091},
        "ece": {"value": 0.02, "low": 0.015, "high": 0.06},
    }
    assert format_interval("recall/cat", scores["accuracy"]) == "86.0 to 90.9 %"
