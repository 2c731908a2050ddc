"""Heads scored in closed form: the same as refits without the fold, as scikit-learn does them."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from graftline.errors import UserError
from graftline.evaluation import head_score
from graftline.evaluation.head_score import INTERCEPT, fit_head, losses_of, out_of_fold, score_head

NUM_CLASSES = 4


def made_up(images: int, width: int, noise: float, num_classes: int = NUM_CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Return activations (N, F), each class around a mean of its own, and labels (N,)."""
    generator = np.random.default_rng(0)
    labels = np.arange(images) % num_classes
    means = generator.normal(size=(num_classes, width))
    return means[labels] + noise * generator.normal(size=(images, width)), labels


@pytest.mark.parametrize(("images", "width"), [(60, 90), (200, 30)])  # either form of the equations
def test_each_image_is_scored_by_a_fit_without_its_fold(images: int, width: int) -> None:
    activations, labels = made_up(images, width, noise=3.0)
    folds = np.arange(images) // NUM_CLASSES % 5
    score = score_head(activations, labels, NUM_CLASSES, folds)
    scaled = (activations - activations.mean(axis=0)) / activations.std(axis=0)
    inputs = np.hstack([scaled, np.full((images, 1), INTERCEPT)])
    outputs = np.empty((images, NUM_CLASSES))
    for fold in range(5):
        out = folds == fold
        ridge = Ridge(alpha=score.strength * (~out).sum(), fit_intercept=False)
        outputs[out] = ridge.fit(inputs[~out], np.eye(NUM_CLASSES)[labels[~out]]).predict(inputs[out])
    np.testing.assert_array_equal(score.hits, outputs.argmax(axis=1) == labels)
    best = min(_softmax_loss(scale * outputs, labels).mean() for scale in np.geomspace(0.2, 300, 2000))
    assert score.log_loss == pytest.approx(best, abs=1e-3)
    assert score.accuracy == score.hits.mean()


def test_it_is_near_logistic_regression_and_ranks_as_that_does() -> None:
    losses = []
    for noise in (2.0, 4.0, 6.0):
        activations, labels = made_up(300, 40, noise)
        ours = score_head(activations, labels, NUM_CLASSES, np.arange(300) // NUM_CLASSES % 5).log_loss
        heads = [make_pipeline(StandardScaler(), LogisticRegression(C=c)) for c in (0.003, 0.01, 0.03, 0.1, 1.0)]
        theirs = min(
            log_loss(labels, cross_val_predict(head, activations, labels, cv=5, method="predict_proba"))
            for head in heads
        )
        assert ours == pytest.approx(theirs, abs=0.1)
        losses.append(ours)
    assert losses == sorted(losses)


def test_of_very_many_logits_some_tell_how_sure_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    activations, labels = made_up(8000, 20, noise=3.0)
    folds = np.arange(8000) // NUM_CLASSES % 5
    whole = out_of_fold(activations, labels, NUM_CLASSES, folds)
    monkeypatch.setattr(head_score, "MOST_LOGITS", 8000)  # of 2,000 images
    part = out_of_fold(activations, labels, NUM_CLASSES, folds)
    assert part.logits.shape == whole.logits.shape
    assert part.sureness != whole.sureness
    assert losses_of(part.logits, labels).mean() == pytest.approx(losses_of(whole.logits, labels).mean(), abs=1e-3)


def test_a_thousand_classes_of_which_some_have_no_image_in_a_fit() -> None:
    activations, labels = made_up(2000, 64, noise=0.3, num_classes=1000)
    labels[labels == 7] = 8  # class 7 has no image at all
    folds = np.arange(2000) // 1000
    score = score_head(activations, labels, 1000, folds)
    assert np.isfinite(score.losses).all()
    assert score.accuracy > 0.9


def test_what_is_the_same_for_all_images_says_nothing() -> None:
    activations, labels = made_up(100, 20, noise=1.0)
    folds = np.arange(100) // NUM_CLASSES % 5
    plain = score_head(activations, labels, NUM_CLASSES, folds)
    padded = score_head(np.hstack([activations, np.full((100, 3), 7.0)]), labels, NUM_CLASSES, folds)
    np.testing.assert_allclose(padded.losses, plain.losses, atol=1e-6)


def _softmax_loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses: np.ndarray = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return losses


@pytest.mark.parametrize(("images", "width"), [(60, 90), (200, 30)])  # either form of the equations
def test_a_head_is_the_ridge_regression_of_all_images(images: int, width: int) -> None:
    activations, labels = made_up(images, width, noise=3.0)
    folds = np.arange(images) // NUM_CLASSES % 5
    chosen = out_of_fold(activations, labels, NUM_CLASSES, folds)
    head = fit_head(activations, labels, NUM_CLASSES, folds)
    new, _ = made_up(50, width, noise=5.0)
    mean, scale = activations.mean(axis=0), activations.std(axis=0)
    inputs, others = (np.hstack([(a - mean) / scale, np.full((len(a), 1), INTERCEPT)]) for a in (activations, new))
    ridge = Ridge(alpha=chosen.strength * images, fit_intercept=False).fit(inputs, np.eye(NUM_CLASSES)[labels])
    np.testing.assert_allclose(head.logits(new), chosen.sureness * ridge.predict(others), atol=1e-8)


def test_what_knows_nothing_is_no_better_than_the_first_class() -> None:
    """Activations that say nothing: of several classes that are equally probable one is answered."""
    labels = np.arange(40) % NUM_CLASSES
    score = score_head(np.zeros((40, 60)), labels, NUM_CLASSES, np.zeros(40, np.int64))
    assert score.accuracy == 1 / NUM_CLASSES


def test_activations_that_are_no_numbers_are_told() -> None:
    activations = np.random.default_rng(0).normal(size=(40, 3))
    activations[[3, 5], 1] = np.nan, np.inf
    labels, folds = np.arange(40) % 2, np.arange(40) % 4
    for score in (score_head, fit_head):
        with pytest.raises(UserError, match="activations of 2 of 40 images are infinite or no numbers"):
            score(activations, labels, 2, folds)
