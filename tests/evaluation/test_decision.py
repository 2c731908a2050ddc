"""Decisions: a class that is to be found, costs, and what scores make of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_predictions import predictions_of
from scipy.special import softmax
from sklearn.metrics import precision_score, recall_score

from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.errors import UserError
from graftline.evaluation.decision import FindClass, LowestCost, MostProbable
from graftline.evaluation.metrics import score
from graftline.evaluation.predictions import Predictions

NAMES = ("bad", "good", "odd")


def draw(images: int, classes: int, seed: int) -> Predictions:
    """Return predictions with right probabilities."""
    generator = np.random.default_rng(seed)
    probabilities = softmax(generator.normal(0, 2, (images, classes)), axis=1)
    labels = (probabilities.cumsum(axis=1) > generator.random((images, 1))).argmax(axis=1)
    return predictions_of(probabilities.astype(np.float32), labels, NAMES[:classes])


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("target", [0.5, 0.9])
def test_new_images_of_the_class_are_found_as_often_as_asked(classes: int, target: float) -> None:
    recalls = []
    for seed in range(150):
        fit = FindClass("bad", target).choose(draw(60, classes, seed))
        others = replace(draw(400, classes, seed + 1000), decision=fit.decision)
        recalls.append((others.predicted[others.labels == 0] == 0).mean())
    assert target - 0.01 < np.mean(recalls) < target + 0.05  # with some 20 images a threshold is coarse


def test_of_two_classes_it_is_a_threshold() -> None:
    predictions = draw(200, 2, 0)
    fit = FindClass("good", 0.95).choose(predictions)
    threshold = fit.decision.thresholds[1]
    assert sum(fit.decision.thresholds) == pytest.approx(1)
    expected = predictions.probabilities[:, 1] >= threshold
    answers = replace(predictions, decision=fit.decision).predicted
    np.testing.assert_array_equal(answers == 1, expected)
    of_class = np.sort(predictions.probabilities[predictions.labels == 1, 1])
    assert threshold == pytest.approx(of_class[int((len(of_class) + 1) * 0.05) - 1], rel=1e-4)
    recall, precision = recall_score(predictions.labels, answers), precision_score(predictions.labels, answers)
    assert f"“good” is answered where its probability is {threshold:.3f} or more" in fit.sentence
    assert f"{100 * recall:.1f} % of its images instead of" in fit.sentence
    assert f"{100 * precision:.1f} % of such answers are right" in fit.sentence


def test_what_cannot_be_found_is_refused_before_a_training() -> None:
    FindClass("bad", 0.95).check({"bad": 19, "good": 5})
    with pytest.raises(UserError, match=r"needs 19 validation images of “bad”, and there are 18"):
        FindClass("bad", 0.95).check({"bad": 18, "good": 5})
    with pytest.raises(UserError, match=r"FindClass\.class_name is 'dab', but the classes are bad, good"):
        FindClass("dab").check({"bad": 100, "good": 100})
    with pytest.raises(UserError, match="one class only"):
        FindClass("bad").check({"bad": 100})
    with pytest.raises(UserError, match=r"FindClass\.recall is 1"):
        FindClass("bad", 1)
    with pytest.raises(UserError, match=r"LowestCost\.costs names 'dab'"):
        LowestCost({"bad": {"dab": 3.0}}).check({"bad": 100, "good": 100})
    with pytest.raises(UserError, match=r"LowestCost\.costs\.bad\.good is -1"):
        LowestCost({"bad": {"good": -1}})
    with pytest.raises(UserError, match=r"LowestCost\.costs is empty"):
        LowestCost({})


def test_the_lowest_cost_is_that_of_trying_all_thresholds() -> None:
    predictions = draw(4000, 2, 0)
    rule = LowestCost({"bad": {"good": 10}})
    fit = rule.choose(predictions)
    assert fit.sentence.startswith("The class with the lowest expected cost is answered")
    answers = replace(predictions, decision=fit.decision).predicted
    matrix = rule.matrix(("bad", "good"))
    np.testing.assert_array_equal(matrix, [[0, 10], [1, 0]])
    # Elkan 2001, equation 2: to answer "bad" pays from a probability of 1 / 11 on
    np.testing.assert_array_equal(answers == 0, predictions.probabilities[:, 0] > 1 / 11)
    ours = matrix[predictions.labels, answers].mean()
    tried = [
        matrix[predictions.labels, np.where(predictions.probabilities[:, 0] >= threshold, 0, 1)].mean()
        for threshold in np.linspace(0, 1, 101)
    ]
    assert ours == pytest.approx(min(tried), rel=0.05)
    assert ours < tried[50]


def test_costs_that_change_nothing_are_not_kept() -> None:
    predictions = draw(300, 3, 0)
    fit = LowestCost({"bad": {"good": 1}}).choose(predictions)
    assert fit.decision == MOST_PROBABLE
    assert fit.sentence.startswith("The most probable class is answered")
    assert MostProbable().choose(predictions).decision == MOST_PROBABLE


def test_scores_are_those_of_the_answers() -> None:
    predictions = draw(500, 3, 1)
    decided = replace(predictions, decision=Decision(costs=((0, 5, 5), (1, 0, 1), (1, 2, 0))))
    before, after = score(predictions, 100), score(decided, 100)
    answers = decided.predicted
    assert after["accuracy"].value == (answers == decided.labels).mean() < before["accuracy"].value
    assert after["recall/bad"].value == recall_score(decided.labels == 0, answers == 0) > before["recall/bad"].value
    assert after["recall/bad"].low <= after["recall/bad"].value <= after["recall/bad"].high
    paid = np.array(decided.decision.costs)[decided.labels, answers]
    assert after["cost"].value == pytest.approx(paid.mean())
    half = 1.96 * paid.std() / np.sqrt(500)
    assert after["cost"].high - after["cost"].value == pytest.approx(half, rel=0.4)
    assert "cost" not in before
    for name in ("log_loss", "brier", "auroc", "ece"):
        assert after[name] == before[name], name


def test_a_file_keeps_the_decision(tmp_path: Path) -> None:
    predictions = replace(draw(30, 3, 1), decision=Decision(thresholds=(0.1, 0.5, 0.4)))
    loaded = Predictions.load(predictions.save(tmp_path / "predictions.parquet"))
    assert loaded.decision == predictions.decision
    np.testing.assert_array_equal(loaded.predicted, predictions.predicted)
    np.testing.assert_array_equal(
        loaded.confidences, loaded.probabilities[np.arange(30), loaded.predicted].astype(loaded.logits.dtype)
    )
