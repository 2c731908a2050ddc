"""Classes that are to be found: new images are, at the least price, and what cannot be found is told."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_predictions import draw_predictions, predictions_of
from sklearn.metrics import precision_score, recall_score

from graftline.bundle.decision import MOST_PROBABLE
from graftline.errors import UserError
from graftline.evaluation.recalls import FindClasses, highest_recall, least_weights, position
from graftline.pipeline.cli import compose

NAMES = ("bad", "good", "odd")


def new_recalls(
    rule: FindClasses, num_images: int, classes: int, spread: float, repeats: int = 150
) -> tuple[dict[str, float], float]:
    """Return the mean recalls of new images by class, and how often the targets could be met together."""
    found: list[list[float]] = []
    for seed in range(repeats):
        try:
            fit = rule.choose(draw_predictions(num_images, NAMES[:classes], seed, spread))
        except UserError:
            continue
        others = replace(draw_predictions(1000, NAMES[:classes], seed + 10_000, spread), decision=fit.decision)
        numbers = [NAMES.index(name) for name in rule.targets]
        found.append([float((others.predicted[others.labels == number] == number).mean()) for number in numbers])
    return dict(zip(rule.targets, np.mean(found, axis=0), strict=True)), len(found) / repeats


@pytest.mark.parametrize("classes", [2, 3])
def test_new_images_of_a_class_are_found_as_often_as_asked(classes: int) -> None:
    recalls, _ = new_recalls(FindClasses("bad", 0.9), 60, classes, spread=2)
    assert 0.89 < recalls["bad"] < 0.95  # with some 20 images a threshold is coarse


@pytest.mark.parametrize("targets", [{"bad": 0.9, "good": 0.8}, {"bad": 0.85, "good": 0.8, "odd": 0.5}])
def test_new_images_of_several_classes_are_found_as_often_as_asked(targets: Mapping[str, float]) -> None:
    recalls, met = new_recalls(FindClasses(recalls=targets), 300, 3, spread=4)
    assert met > 0.95
    for name, recall in recalls.items():
        assert recall > targets[name] - 0.005, name
    assert recalls["bad"] < targets["bad"] + 0.03, "no more than needed"


def test_targets_that_can_barely_be_met_fall_a_little_short() -> None:
    recalls, met = new_recalls(FindClasses(recalls={"bad": 0.8, "good": 0.8}), 150, 3, spread=2)
    assert 0.7 < met < 0.9
    assert all(0.78 < recall < 0.82 for recall in recalls.values())


def test_weights_are_those_of_trying_all() -> None:
    """The least that meet the targets, and the most accurate."""
    tried = np.exp(np.linspace(0, 1.5, 61))
    grid = np.stack([*np.meshgrid(tried, tried), np.ones((61, 61))], axis=-1).reshape(-1, 3)
    for seed in range(3):
        predictions = draw_predictions(3000, NAMES, seed, spread=3)
        labels, targets = predictions.labels, {0: 0.86, 1: 0.78}
        positions = {number: position((labels == number).sum(), recall) for number, recall in targets.items()}
        least = [(labels == number).sum() - positions[number] + 1 for number in (0, 1)]
        weights = least_weights(predictions.probabilities, labels, positions)
        assert weights is not None
        found = np.empty((len(grid), 2))
        accuracies = np.empty(len(grid))
        for row, one in enumerate(grid):
            answers = (predictions.probabilities * one).argmax(axis=1)
            found[row] = [(answers[labels == number] == number).sum() for number in (0, 1)]
            accuracies[row] = np.take_along_axis(predictions.probabilities, answers[:, None], axis=1).mean()
        meets = (found >= least).all(axis=1)
        np.testing.assert_allclose(weights, grid[meets].min(axis=0), rtol=0.06)  # a step is 2.5 %
        answers = (predictions.probabilities * weights).argmax(axis=1)
        accuracy = np.take_along_axis(predictions.probabilities, answers[:, None], axis=1).mean()
        assert accuracy > accuracies[meets].max() - 0.002, "expected of probabilities that are right"


def test_targets_can_be_met_together_if_any_weights_meet_them() -> None:
    """So say 22,500 weights that are tried; a few lie between them."""
    tried = np.exp(np.linspace(-6, 6, 150))
    met_by_ours = list[bool]()
    for seed in range(40):
        generator = np.random.default_rng(seed)
        predictions = draw_predictions(100, NAMES, seed)
        labels = predictions.labels
        targets = dict(enumerate(generator.uniform(0.4, 0.9, 2 + seed % 2)))
        positions = {number: position((labels == number).sum(), recall) for number, recall in targets.items()}
        least = {number: (labels == number).sum() - first + 1 for number, first in positions.items()}
        weights = least_weights(predictions.probabilities, labels, positions)
        met_by_ours.append(weights is not None)
        if weights is not None:
            answers = (predictions.probabilities * weights).argmax(axis=1)
            assert all((answers[labels == number] == number).sum() >= count for number, count in least.items())
            continue
        for weight in tried:
            others = np.stack([np.full(150, weight), tried, np.ones(150)])
            answers = (predictions.probabilities[:, :, None] * others).argmax(axis=1)  # (N, 150)
            meets = [(answers[labels == number] == number).sum(axis=0) >= count for number, count in least.items()]
            assert not np.all(meets, axis=0).any(), seed
    assert 5 < sum(met_by_ours) < 35


def test_of_two_classes_it_is_a_threshold() -> None:
    predictions = draw_predictions(200, NAMES[:2], 0)
    fit = FindClasses("good", 0.95).choose(predictions)
    threshold = fit.decision.thresholds[1]
    assert sum(fit.decision.thresholds) == pytest.approx(1)
    expected = predictions.probabilities[:, 1] >= threshold
    answers = replace(predictions, decision=fit.decision).predicted
    np.testing.assert_array_equal(answers == 1, expected)
    of_class = np.sort(predictions.probabilities[predictions.labels == 1, 1])
    assert threshold == pytest.approx(of_class[int((len(of_class) + 1) * 0.05) - 1], rel=1e-4)
    recall, precision = recall_score(predictions.labels, answers), precision_score(predictions.labels, answers)
    assert f"“good” is answered where its probability is {threshold:.3f} or more" in fit.sentence
    assert f"is found in {100 * recall:.1f} % instead of" in fit.sentence
    assert f"and {100 * precision:.1f} % instead of" in fit.sentence
    assert FindClasses(recalls={"good": 0.95}).choose(predictions) == fit


def test_what_is_found_often_enough_is_left_alone() -> None:
    predictions = draw_predictions(200, NAMES, 0, spread=4)
    fit = FindClasses(recalls={"bad": 0.5, "good": 0.5}).choose(predictions)
    assert fit.decision == MOST_PROBABLE
    assert fit.sentence.startswith("The most probable class is answered, which finds as many as are asked for: on 200")
    assert "instead of" not in fit.sentence
    fit = FindClasses(recalls={"bad": 0.9, "good": 0.5}).choose(predictions)
    bad, good, odd = fit.decision.thresholds
    assert bad < good == odd


def test_what_cannot_be_met_together_is_told_with_what_can() -> None:
    predictions = draw_predictions(200, NAMES, 1, spread=3)
    with pytest.raises(UserError) as raised:
        FindClasses(recalls={"bad": 0.9, "good": 0.8}).choose(predictions)
    told = "asks for 0.9 of “bad” and 0.8 of “good”, which cannot be met together on the 200 validation images: "
    assert told + "0.89 of “bad” or 0.797 of “good” can, beside the others." in str(raised.value)
    for targets in ({"bad": 0.89, "good": 0.8}, {"bad": 0.9, "good": 0.797}):
        assert FindClasses(recalls=targets).choose(predictions).decision != MOST_PROBABLE
    with pytest.raises(UserError, match="lower several of them"):
        FindClasses(recalls=dict.fromkeys(NAMES, 0.9)).choose(predictions)
    positions = {0: 1, 1: 1, 2: 1}
    assert highest_recall(predictions.probabilities, predictions.labels, positions, 0) == 0


def test_a_probability_of_zero_and_a_class_without_images() -> None:
    """What a sure network says: no division by zero, and what cannot be found is not counted as found."""
    sure = np.array([[1.0, 0.0, 0.0]] * 30 + [[0.0, 1.0, 0.0]] * 30, dtype=np.float32)
    predictions = predictions_of(sure, np.repeat([0, 1], 30), NAMES)
    assert FindClasses("bad", 0.9).choose(predictions).decision == MOST_PROBABLE
    with pytest.raises(UserError, match=r"needs 9 validation images of “odd”, and there are 0"):
        FindClasses("odd", 0.9).check({"bad": 30, "good": 30, "odd": 0})


def test_what_cannot_be_found_is_refused_before_a_training() -> None:
    FindClasses("bad", 0.95).check({"bad": 19, "good": 5})
    with pytest.raises(UserError, match=r"needs 19 validation images of “bad”, and there are 18"):
        FindClasses("bad", 0.95).check({"bad": 18, "good": 5})
    several = FindClasses(recalls={"bad": 0.95, "good": 0.9, "odd": 0.5})
    several.check({"bad": 19, "good": 9, "odd": 1})
    told = r"recalls\.bad=0\.95 needs 19 .* “bad”, and there are 18; .*recalls\.good=0\.9 needs 9 .* there are 8: give"
    with pytest.raises(UserError, match=told):
        several.check({"bad": 18, "good": 8, "odd": 100})
    with pytest.raises(UserError, match=r"FindClasses\.class_name is 'dab', but the classes are bad, good"):
        FindClasses("dab").check({"bad": 100, "good": 100})
    with pytest.raises(UserError, match=r"FindClasses\.recalls names 'dab', 'dob', but the classes are bad, good"):
        FindClasses(recalls={"dab": 0.5, "bad": 0.5, "dob": 0.5}).check({"bad": 100, "good": 100})
    with pytest.raises(UserError, match="one class only"):
        FindClasses("bad").check({"bad": 100})


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"class_name is missing: name the class to find, or give FindClasses\.recalls"):
        FindClasses()
    with pytest.raises(UserError, match=r"class_name is missing"):
        FindClasses(recalls={})
    with pytest.raises(UserError, match=r"FindClasses\.recall is 1, it must be above 0 and below 1"):
        FindClasses("bad", 1)
    for recall in (0, 1.2, float("nan")):
        with pytest.raises(UserError, match=rf"FindClasses\.recalls\.good is {float(recall)}, it must be above 0"):
            FindClasses(recalls={"bad": 0.9, "good": recall})
    with pytest.raises(UserError, match=r"leave out FindClasses\.class_name and FindClasses\.recall"):
        FindClasses("bad", recalls={"bad": 0.9})
    with pytest.raises(UserError, match=r"leave out FindClasses\.class_name and FindClasses\.recall"):
        FindClasses(recall=0.8, recalls={"bad": 0.9})


def test_what_is_typed() -> None:
    stage: Any = compose("train", ["decision=recall", "decision.recalls={0:0.9,a b:0.8}"]).stage
    assert stage.decision.targets == {"0": 0.9, "a b": 0.8}, "names that look like numbers are names"
    for key in ("recalls", "decision.recalls"):
        typed = f'{key}={{Löß:0.9, true:0.8,1e3:0.7,"a, b":0.6,null:0.5}}'
        stage = compose("train", ["decision=recall", typed]).stage
        assert stage.decision.targets == {"Löß": 0.9, "true": 0.8, "1e3": 0.7, "a, b": 0.6, "null": 0.5}
    with pytest.raises(UserError, match=r"\{Löß:0\.9, a: no mapping such as .*: put quotes around a name with"):
        compose("train", ["decision=recall", "recalls={Löß:0.9, a"])
    with pytest.raises(UserError, match=r"decision\.class_name is missing: .* or give decision\.recalls"):
        compose("train", ["decision=recall"])
    for value in ("{bad:high}", "[bad,good]"):
        with pytest.raises(UserError, match=r"decision\.recalls=.*: must be \{name: a number\} or null"):
            compose("train", ["decision=recall", f"decision.recalls={value}"])
