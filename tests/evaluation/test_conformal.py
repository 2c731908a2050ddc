"""Sets of classes: their coverage in a simulation, calibration included, and what is too little for them."""

from dataclasses import replace

import numpy as np
import pytest
from made_predictions import predictions_of
from scipy.special import softmax

from graftline.bundle.decision import Decision
from graftline.errors import UserError
from graftline.evaluation.calibration import fit_calibration
from graftline.evaluation.conformal import check_sets, with_sets
from graftline.evaluation.decision import NOT_CHOSEN
from graftline.evaluation.metrics import score
from graftline.evaluation.predictions import Predictions


def draw(images: int, seed: int) -> Predictions:
    """Return predictions of five classes that are too sure."""
    generator = np.random.default_rng(seed)
    true = generator.normal(0, 1.5, (images, 5))
    labels = (softmax(true, axis=1).cumsum(axis=1) > generator.random((images, 1))).argmax(axis=1)
    return predictions_of(softmax(2 * true, axis=1).astype(np.float32), labels)


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_new_images_are_covered_as_often_as_asked(coverage: float) -> None:
    covered = []
    for seed in range(40):
        raw = draw(100, seed)
        calibration = fit_calibration(
            raw
        ).calibration  # on the same images, which moves the coverage by next to nothing
        fit = with_sets(NOT_CHOSEN, replace(raw, logits=calibration.apply(raw.logits)), coverage)
        new = draw(1000, 1000 + seed)
        sets = fit.decision.sets(softmax(calibration.apply(new.logits), axis=1))
        covered.append(sets[np.arange(1000), new.labels].mean())
    assert coverage - 0.015 < np.mean(covered) < coverage + 0.02


def test_the_scores_and_the_sentence_tell_of_the_sets() -> None:
    predictions = draw(400, 0)
    fit = with_sets(NOT_CHOSEN, predictions, 0.9)
    scores = score(replace(predictions, decision=fit.decision), 100)
    assert scores["set_coverage"].value == pytest.approx(0.9, abs=0.006)
    sizes = fit.decision.sets(predictions.probabilities).sum(axis=1)
    assert sizes.min() == 1
    assert scores["set_size"].value == pytest.approx(sizes.mean())
    assert scores["set_size"].low < scores["set_size"].value < scores["set_size"].high
    assert f"{sizes.mean():.2f} classes on average" in fit.sentence


def test_the_class_that_is_answered_is_in_its_set() -> None:
    decision = Decision(thresholds=(0.9, 0.1), set_threshold=0.5)
    np.testing.assert_array_equal(decision.sets(np.array([[0.8, 0.2]])), [[True, True]])


def test_too_few_images_are_refused() -> None:
    check_sets(0.95, 19)
    with pytest.raises(UserError, match=r"sets=0\.95 needs 19 validation images, and there are 3"):
        check_sets(0.95, 3)
    with pytest.raises(UserError, match="sets is 95"):
        check_sets(95, 1000)
