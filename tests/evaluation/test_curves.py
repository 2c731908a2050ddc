import numpy as np
import pytest
from made_predictions import predictions_of
from sklearn import metrics

from graftline.evaluation.class_curves import curves_of_classes, reliability
from graftline.evaluation.curves import counts_by_threshold, roc_area, roc_curve


@pytest.mark.parametrize("levels", [2, 7, 1000])
@pytest.mark.parametrize("images", [2, 3, 200])
def test_curves_and_areas_are_those_of_scikit_learn_ties_included(images: int, levels: int) -> None:
    generator = np.random.default_rng(images + levels)
    scores = generator.integers(0, levels, images) / levels
    positive = np.arange(images) % 3 == 0

    false, true, _ = metrics.roc_curve(positive, scores, drop_intermediate=False)
    assert np.array_equal(np.stack(roc_curve(positive, scores)), np.stack([false, true]))
    assert roc_area(positive, scores) == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-12)

    precision, recall, _ = metrics.precision_recall_curve(positive, scores)  # as the threshold rises, then (1, 0)
    found, taken = counts_by_threshold(positive, scores)
    ours = np.stack([found / taken, found / found[-1]])
    assert np.array_equal(ours, np.stack([precision[-2::-1], recall[-2::-1]]))


def test_the_areas_of_all_classes_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    probabilities = generator.dirichlet(np.ones(4), 90)
    predictions = predictions_of(probabilities, labels, ["a", "b", "c", "absent"])
    curves = curves_of_classes(predictions)
    assert curves_of_classes(predictions) is curves, "they are found once"
    for number in range(3):
        scores = predictions.probabilities[:, number]
        positive = labels == number
        assert curves.roc.areas[number] == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-12)
        expected = metrics.average_precision_score(positive, scores)
        assert curves.precision_recall.areas[number] == pytest.approx(expected, abs=1e-12)
    assert np.isnan([curves.roc.areas[3], curves.precision_recall.areas[3]]).all()
    assert sorted(curves.roc.curves) == sorted(curves.precision_recall.curves) == [0, 1, 2]
    assert curves.roc.named(2) == np.argsort(curves.roc.areas[:3]).tolist()
    single = curves_of_classes(predictions_of(probabilities, np.zeros(90, int)))
    assert not single.roc.curves
    assert list(single.precision_recall.curves) == [0]


@pytest.mark.parametrize(
    ("sure", "told"),
    [
        (0.8, "On average as sure of its predictions as they are often right."),
        (0.9, "On average 10.0 points too sure of its predictions."),
        (0.7, "On average 10.0 points too unsure of its predictions."),
    ],
)
def test_how_sure_a_model_is_is_told_against_how_often_it_is_right(sure: float, told: str) -> None:
    labels = np.array([0] * 8 + [1] * 2)  # class 0 is always predicted, and right eight times in ten
    predictions = predictions_of(np.tile([sure, 1 - sure], (10, 1)), labels, ["a", "b"])
    assert reliability(predictions).sentence == told
