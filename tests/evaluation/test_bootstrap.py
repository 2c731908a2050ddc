"""The fast path against scikit-learn and torchmetrics on resamples that are written out."""

import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification.calibration_error import _ce_compute, multiclass_calibration_error

from graftline.evaluation import bootstrap
from graftline.evaluation.bootstrap import Bootstrap, confidence_bins, multiplicities, normalized


def predictions(num_images: int, num_classes: int, seed: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, K) of a mediocre classifier and labels (N,); with ``ties`` many scores are equal."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_images)
    logits = generator.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += 1.3
    if ties:
        logits = np.round(logits)
    scores = np.exp(logits)
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32), labels


def by_the_book(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, num_classes: int
) -> dict[str, np.ndarray]:
    """Compute every statistic of arrays as they are, with the libraries' own functions."""
    predicted, classes = probabilities.argmax(axis=1), np.arange(num_classes)
    exact = normalized(probabilities)
    per_class = {"labels": classes, "average": None, "zero_division": np.nan}
    present = [one for one in classes if 0 < np.sum(labels == one) < len(labels)]
    ranked = [1] if num_classes == 2 else classes
    areas = [sk.roc_auc_score(labels == one, probabilities[:, one]) for one in ranked if one in present]
    confidences, right = torch.from_numpy(exact.max(axis=1)).float(), torch.from_numpy(predicted == labels)
    edges = torch.linspace(0, 1, 16)
    error = _ce_compute(confidences.double(), right, edges.double()).item()  # torchmetrics' own, in double precision
    public = multiclass_calibration_error(torch.from_numpy(exact), torch.from_numpy(labels), num_classes, n_bins=15)
    assert error == pytest.approx(public.item(), abs=1e-6)  # it sums in single precision
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        balanced = sk.balanced_accuracy_score(labels, predicted)
    values = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "accuracy_weighted": sk.accuracy_score(labels, predicted, sample_weight=weights),
        "balanced_accuracy": balanced,
        "f1_macro": sk.f1_score(labels, predicted, average="macro"),  # over the classes that occur
        "auroc": np.mean(areas) if areas else np.nan,
        "log_loss": sk.log_loss(labels, exact, labels=classes),
        "brier": sk.brier_score_loss(labels, exact, labels=classes),
        "ece": error,
        "precision": sk.precision_score(labels, predicted, **per_class),
        "recall": sk.recall_score(labels, predicted, **per_class),
    }
    return {name: np.asarray(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("num_images", "num_classes", "ties"),
    [(656, 2, False), (90, 2, True), (300, 5, False), (200, 4, True), (40, 12, True), (400, 30, False)],
)
def test_statistics_equal_the_libraries_on_written_out_resamples(num_images: int, num_classes: int, ties: bool) -> None:
    probabilities, labels = predictions(num_images, num_classes, seed=num_images, ties=ties)
    weights = np.random.default_rng(1).choice([1.0, 1 / 3], num_images).astype(np.float32)
    counts = next(multiplicities(num_images, resamples=6, seed=3))
    fast = Bootstrap(probabilities, labels, weights).statistics(counts)
    for number in range(6):
        drawn = np.repeat(np.arange(num_images), counts[:, number])
        book = by_the_book(probabilities[drawn], labels[drawn], weights[drawn], num_classes)
        assert fast.keys() == book.keys()
        for name, value in book.items():
            np.testing.assert_allclose(fast[name][number], value, rtol=0, atol=1e-12, err_msg=name)


def test_resamples_without_a_class_are_what_the_libraries_say_of_them() -> None:
    probabilities, labels = predictions(60, 4, seed=2)
    labels[labels == 3] = 0
    labels[0] = 3  # a single image, absent from a third of the resamples
    counts = next(multiplicities(60, resamples=100, seed=0))
    fast = Bootstrap(probabilities, labels, np.ones(60)).statistics(counts)
    absent = np.flatnonzero(counts[0] == 0)
    assert 20 < len(absent) < 60
    assert np.isnan(fast["recall"][absent, 3]).all()
    for number in absent[:10]:
        drawn = np.repeat(np.arange(60), counts[:, number])
        book = by_the_book(probabilities[drawn], labels[drawn], np.ones(60), 4)
        for name, value in book.items():
            np.testing.assert_allclose(fast[name][number], value, rtol=0, atol=1e-12, err_msg=name)


def test_a_resample_of_one_of_two_classes_has_no_auroc() -> None:
    probabilities, labels = predictions(5, 2, seed=0)
    labels[:] = [0, 0, 0, 0, 1]
    counts = np.array([[5, 1], [0, 1], [0, 1], [0, 1], [0, 1]], dtype=np.int32)
    areas = Bootstrap(probabilities, labels).statistics(counts)["auroc"]
    assert np.isnan(areas[0])
    assert areas[1] == pytest.approx(sk.roc_auc_score(labels, probabilities[:, 1]), abs=1e-15)


def test_resamples_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(multiplicities(50, resamples=20, seed=0)), axis=1)
    monkeypatch.setattr(bootstrap, "MAX_CHUNK_ENTRIES", 50 * 7)
    parts = list(multiplicities(50, resamples=20, seed=0))
    assert [part.shape[1] for part in parts] == [7, 7, 6]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert (whole.sum(axis=0) == 50).all()
    assert not np.array_equal(whole, next(multiplicities(50, resamples=20, seed=1)))


def test_groups_are_drawn_whole() -> None:
    groups = np.random.default_rng(2).integers(0, 12, 80)
    counts = next(multiplicities(80, resamples=40, seed=3, groups=groups))
    _, first = np.unique(groups, return_index=True)
    np.testing.assert_array_equal(counts, counts[first][groups])
    np.testing.assert_array_equal(counts[first].sum(axis=0), 12)
    alone = next(multiplicities(80, resamples=40, seed=3, groups=np.arange(80)))
    np.testing.assert_array_equal(alone, next(multiplicities(80, resamples=40, seed=3)))
    probabilities, labels = predictions(80, 3, seed=1)
    fast = Bootstrap(probabilities, labels, np.ones(80)).statistics(counts)
    for number in range(5):
        drawn = np.repeat(np.arange(80), counts[:, number])
        for name, value in by_the_book(probabilities[drawn], labels[drawn], np.ones(len(drawn)), 3).items():
            np.testing.assert_allclose(fast[name][number], value, rtol=0, atol=1e-12, err_msg=name)


def test_confidences_on_an_edge_fall_where_torchmetrics_puts_them() -> None:
    edges = torch.linspace(0, 1, 16).numpy()
    np.testing.assert_array_equal(confidence_bins(edges), np.arange(16))
    just_below = np.nextafter(edges[1:], np.float32(0))
    np.testing.assert_array_equal(confidence_bins(just_below), np.arange(15))
