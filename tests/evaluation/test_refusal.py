"""Images that are none of the classes: distances against scikit-learn, the share of false refusals in a simulation."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from graftline.bundle.refusal import neighbor_distances, unit
from graftline.errors import UserError
from graftline.evaluation.refusal import check_refuse, fit_refusal

NAMES = ("a", "b", "c")


def draw(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings of three classes, each around a direction of its own, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % 3
    return (5 * np.eye(20)[labels] + generator.normal(0, 1, (images, 20))).astype(np.float32), labels


def test_distances_are_scikit_learns() -> None:
    references, embeddings = unit(draw(90, 0)[0]), draw(1500, 1)[0]
    theirs = NearestNeighbors(n_neighbors=4).fit(references).kneighbors(unit(embeddings))[0]
    for neighbor in (1, 4):
        ours = neighbor_distances(references, embeddings, neighbor)
        np.testing.assert_allclose(ours, theirs[:, neighbor - 1], atol=1e-3)


def test_as_many_images_of_known_classes_are_refused_as_asked() -> None:
    refused = [
        fit_refusal(draw(90, seed), draw(100, 1000 + seed), NAMES, 0.1)
        .refusal.refused(draw(300, 2000 + seed)[0])
        .mean()
        for seed in range(40)
    ]
    # of 100 validation images the 91st sets the threshold: 10 of 101 lie beyond, on average
    assert np.mean(refused) == pytest.approx(10 / 101, abs=0.02)


def test_a_class_that_is_left_out_is_refused_where_it_differs() -> None:
    fit = fit_refusal(draw(90, 0), draw(100, 1), NAMES, 0.05)
    assert set(fit.left_out) == set(NAMES)
    assert min(fit.left_out.values()) > 0.9
    assert fit.refusal.refused(np.eye(20, dtype=np.float32)[[10, 15]]).all()
    assert "farther from 90 training images than all but 5 % of those of known classes" in fit.sentence
    embeddings, labels = draw(300, 2)
    same = np.random.default_rng(0).permutation(labels)  # classes that the embedding does not know
    alike = fit_refusal((embeddings[:150], same[:150]), (embeddings[150:], same[150:]), NAMES, 0.05)
    assert max(alike.left_out.values()) < 0.2


def test_two_validation_images_and_one_class() -> None:
    check_refuse(0.5, 2)
    with pytest.raises(UserError, match=r"refuse=0\.01 needs 99 validation images, and there are 3"):
        check_refuse(0.01, 3)
    check_refuse(0.01, 99)
    with pytest.raises(UserError, match=r"refuse is 1\.5"):
        check_refuse(1.5, 100)
    embeddings = draw(30, 0)[0]
    one = fit_refusal((embeddings, np.zeros(30, int)), (embeddings[:10], np.zeros(10, int)), ("a",), 0.2)
    assert one.left_out == {}
    assert one.sentence.endswith("are marked as refused.")
