"""Subsets have the classes in proportion, and folds keep groups whole."""

import numpy as np

from graftline.data.folds import assign_folds
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


def test_folds_are_even_where_each_image_stands_alone() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    folds = assign_folds(labels, digests(153))
    for number, count in enumerate((100, 50)):
        assert np.bincount(folds[labels == number], minlength=5).tolist() == [count / 5] * 5
    assert np.bincount(folds[labels == 2]).max() == 1  # three images, of which each is tested by a fit with two
    assert np.ptp(np.bincount(folds)) <= 1


def test_groups_stay_whole() -> None:
    labels = np.arange(400) % 4
    groups = [f"font {index % 25}" for index in range(400)]
    folds = assign_folds(labels, groups)
    assert all(len({*folds[np.array(groups) == name]}) == 1 for name in set(groups))
    assert np.ptp(np.bincount(folds)) <= 400 / 25
    assert set(assign_folds(labels, ["a"] * 200 + ["b"] * 200)) == {0, 1}


def test_one_group_is_divided_image_by_image() -> None:
    labels = np.arange(40) % 4
    folds = assign_folds(labels, ["camera 1"] * 40)
    assert np.bincount(folds).tolist() == [8] * 5
    assert all(np.ptp(np.bincount(labels[folds == fold], minlength=4)) <= 1 for fold in range(5))
