"""Decisions: costs, and what scores make of decisions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_predictions import draw_predictions, predictions_of
from sklearn.metrics import recall_score

from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.errors import UserError
from graftline.evaluation.decision import LowestCost, MostProbable
from graftline.evaluation.metrics import score
from graftline.evaluation.predictions import Predictions
from graftline.pipeline.cli import compose

NAMES = ("bad", "good", "odd")


def draw(images: int, classes: int, seed: int) -> Predictions:
    return draw_predictions(images, NAMES[:classes], seed)


def test_costs_that_say_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"LowestCost\.costs names 'dab'"):
        LowestCost({"bad": {"dab": 3.0}}).check({"bad": 100, "good": 100})
    with pytest.raises(UserError, match=r"LowestCost\.costs\.bad\.good is -1"):
        LowestCost({"bad": {"good": -1}})
    with pytest.raises(UserError, match=r"LowestCost\.costs is empty"):
        LowestCost({})


def test_costs_of_classes_whose_names_are_numbers() -> None:
    rule: Any = compose("train", ["decision=cost", "decision.costs={0:{1:10}}"]).stage
    rule.decision.check({"0": 5, "1": 5})
    np.testing.assert_array_equal(rule.decision.matrix(("0", "1")), [[0, 10], [1, 0]])
    with pytest.raises(UserError, match=r"decision\.costs=.*: must be \{name: \{name: a number\}\}"):
        compose("train", ["decision=cost", "decision.costs={0:{1:much}}"])


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


def test_the_error_of_a_cost_counts_groups_not_images() -> None:
    once = draw(400, 2, 0)
    copies = predictions_of(np.repeat(once.probabilities, 2, axis=0), np.repeat(once.labels, 2), NAMES[:2])
    grouped = replace(copies, groups=[f"part {number // 2}" for number in range(800)])
    told = [LowestCost({"bad": {"good": 10}}).choose(given).sentence for given in (once, grouped, copies)]
    errors = [float(sentence.partition("standard error ")[2].partition(")")[0]) for sentence in told]
    assert errors[0] == errors[1] == pytest.approx(np.sqrt(2) * errors[2], rel=0.01)
    alone = predictions_of(once.probabilities[:1], once.labels[:1], NAMES[:2])
    assert "standard error inf" in LowestCost({"bad": {"good": 10}}).choose(alone).sentence


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
