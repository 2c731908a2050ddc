"""Images that are none of the classes: distances against scikit-learn, the share of false refusals in a simulation."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from graftline.bundle.refusal import neighbor_distances, unit
from graftline.errors import UserError
from graftline.evaluation.refusal import MOST_REFERENCES, check_refuse, choose_references, fit_refusal

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


def rare(images: int, of_rare: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings of three clusters, few of which are of the last, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.where(np.arange(images) < of_rare, 2, np.arange(images) % 2)
    return (5 * np.eye(20)[labels] + generator.normal(0, 1, (images, 20))).astype(np.float32), labels


def test_a_rare_class_vouches_for_its_own_images() -> None:
    """20 of 20,000 training images are of it, 8 of 2,000 validation images."""
    training, validation = rare(20_000, 20, 0), rare(2_000, 8, 1)
    digests = [f"{number:08x}" for number in np.random.default_rng(2).permutation(20_000)]
    rows = choose_references(training[1], digests)
    assert np.bincount(training[1][rows]).tolist() == [990, 990, 20]
    assert (np.diff(rows) > 0).all()
    others = np.flatnonzero(training[1] == 0)
    kept = sorted(others, key=lambda row: digests[row])[:990]
    assert set(kept) == set(rows[training[1][rows] == 0]), "contents decide"
    new = rare(500, 500, 3)[0]
    fit = fit_refusal((training[0][rows], training[1][rows]), validation, NAMES, 0.01)
    first = np.argsort(digests)[:MOST_REFERENCES]  # whatever their class
    plain = fit_refusal((training[0][first], training[1][first]), validation, NAMES, 0.01)
    assert plain.refusal.refused(new).all()
    assert fit.refusal.refused(new).mean() < 0.7, "still far more than of the others, as there are few"
    assert "An image is accepted by 5 training images near it, and there are fewer of “c”." in plain.sentence
    assert "Far more is refused of “c” (8 of 8 validation images)." in plain.sentence
    assert fit.sentence.endswith("Far more is refused of “c” (5 of 8 validation images).")


def test_many_classes_give_what_a_class_needs_each() -> None:
    labels = np.repeat(np.arange(1_000), 7)
    rows = choose_references(labels, [f"{number:04x}" for number in range(len(labels))])
    assert np.bincount(labels[rows]).tolist() == [5] * 1_000
    assert choose_references(labels[:100], [""] * 100).tolist() == list(range(100)), "all, where they are few"


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
