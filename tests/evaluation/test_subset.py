"""Subsets have the classes in proportion."""

import numpy as np

from graftline.evaluation.subset import stratified_order

GENERATOR = np.random.default_rng(0)


def digests(number: int) -> list[str]:
    return [f"{value:064x}" for value in GENERATOR.permutation(number)]


def test_each_beginning_has_the_classes_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [600, 297, 3])
    order = stratified_order(labels, digests(900))
    assert sorted(order) == list(range(900))
    for images in (100, 300, 450):
        counts = np.bincount(labels[order[:images]], minlength=3)
        np.testing.assert_allclose(counts / images, [2 / 3, 0.33, 1 / 300], atol=1.5 / images)


def test_an_order_depends_on_the_images_and_not_on_where_they_stand() -> None:
    labels, names = np.arange(60) % 4, digests(60)
    shuffled = GENERATOR.permutation(60)
    first = [names[index] for index in stratified_order(labels, names)]
    moved = [names[index] for index in shuffled]
    assert [moved[index] for index in stratified_order(labels[shuffled], moved)] == first
