import numpy as np
import pytest
from sklearn import metrics

from graftline.evaluation.curves import average_precision, precision_recall_curve, roc_area, roc_curve


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
    ours = np.stack(precision_recall_curve(positive, scores))
    assert np.array_equal(ours, np.stack([precision[-2::-1], recall[-2::-1]]))
    expected = metrics.average_precision_score(positive, scores)
    assert average_precision(positive, scores) == pytest.approx(expected, abs=1e-12)
