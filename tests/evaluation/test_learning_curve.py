"""What more labels bring: intervals hold the truth as often as they say, where it is known."""

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import norm

from graftline.data.folds import assign_folds
from graftline.errors import UserError
from graftline.evaluation.class_value import class_values
from graftline.evaluation.head_score import fit_head, losses_of
from graftline.evaluation.learning_curve import (
    Activated,
    LearningCurve,
    draw_order,
    measure_curve,
    num_heads,
    subset_sizes,
)
from graftline.evaluation.power_law import fit_power_laws

IMAGES, SEEDS, REPETITIONS = 1600, 10, 60
SAME_IMAGE = 0.5  # scatter of one image's verdict over subsets, in units of that over images


def simulated(errors: np.ndarray, validation: int, seed: int) -> LearningCurve:
    """A curve of images that are harder or easier for all sizes, with a known error rate at each."""
    generator = np.random.default_rng(seed)
    sizes = subset_sizes(IMAGES, 2)
    limits = norm.ppf(errors) * np.sqrt(1 + SAME_IMAGE**2)
    scatter = generator.normal(size=(SEEDS, len(sizes), validation))
    scatter[:, -1] = scatter[0, -1]
    wrong = generator.normal(size=validation) + SAME_IMAGE * scatter < limits[None, :, None]
    return LearningCurve(sizes, wrong.astype(np.float32), resamples=200)


@pytest.mark.parametrize(
    ("scale", "exponent", "floor", "validation"),
    [(1.2, 0.5, 0.05, 400), (1.0, 0.3, 0.0, 400), (8.0, 0.9, 0.05, 400), (0.0, 1.0, 0.1, 800)],
)
def test_intervals_hold_the_gain_of_a_known_power_law(
    scale: float, exponent: float, floor: float, validation: int
) -> None:
    errors = scale * subset_sizes(IMAGES, 2) ** -exponent + floor
    truth = scale * (IMAGES**-exponent - (2 * IMAGES) ** -exponent)
    held, checked = [], []
    for seed in range(REPETITIONS):
        curve = simulated(errors, validation, seed)
        gain = curve.gain(2)
        held.append(gain.low <= truth <= gain.high)
        checked.append(curve.check.holds)
    # of 60 intervals of 95 %, 53 or fewer would hold it once in 100 such tests (binomial)
    assert sum(held) > 53
    assert sum(checked) > 53


@pytest.mark.parametrize(("images", "half"), [(1574, 787), (1575, 788), (1573, 787), (801, 401)])
def test_the_check_is_fitted_to_half_of_the_images(images: int, half: int) -> None:
    sizes = subset_sizes(images, 2)
    curve = LearningCurve(sizes, np.random.default_rng(0).random((2, len(sizes), 20)).round().astype(np.float32), 50)
    assert curve.check.size == half


def test_a_kink_is_noticed() -> None:
    """Errors that stop falling where the check looks are no power law."""
    sizes = subset_sizes(IMAGES, 2)
    errors = np.maximum(4 * sizes**-0.5, 4 * (IMAGES / 2) ** -0.5)
    assert not simulated(errors, 2000, seed=0).check.holds


def test_the_fit_is_that_of_least_squares() -> None:
    sizes = subset_sizes(IMAGES, 2)
    errors = 1.5 * sizes**-0.45 + 0.04 + np.random.default_rng(0).normal(0, 0.003, len(sizes))
    theirs, _ = curve_fit(lambda n, a, b, c: a * n**-b + c, sizes, errors, p0=(1, 0.5, 0), sigma=sizes**-0.5)
    law = fit_power_laws(sizes, errors[None])
    expected = theirs[0] * sizes ** -theirs[1] + theirs[2]
    np.testing.assert_allclose([law.error(size)[0] for size in sizes], expected, atol=1e-3)


def images(number: int, seed: int, groups: int | None = None) -> Activated:
    """Three classes around means, of which the third is hard: it lies between the others, in two places."""
    generator = np.random.default_rng(seed)
    labels = np.arange(number) % 3
    means = np.random.default_rng(7).normal(size=(4, 20)) * 0.5
    place = np.where((labels == 2) & (generator.random(number) < 0.5), 3, labels)
    names = [str(index if groups is None else index % groups) for index in range(number)]
    return Activated(means[place] + generator.normal(size=(number, 20)), labels, names)


def test_each_point_is_the_error_of_a_head_on_a_part_of_the_images() -> None:
    train, validation, done = images(400, 1), images(100, 2), list[int]()
    curve = measure_curve(train, validation, 3, seeds=3, resamples=100, on_progress=done.append)
    assert curve.sizes.tolist() == [25, 35, 50, 71, 100, 141, 200, 283, 400]
    assert sum(done) == num_heads(400, 3, 3) == 25
    order = draw_order(train, seed=1)
    rows = order[: curve.sizes[4]]
    assert set(order[:71]) <= set(rows)
    assert np.bincount(train.labels[rows]).tolist() == [34, 33, 33] or np.ptp(np.bincount(train.labels[rows])) <= 1
    folds = assign_folds(train.labels[rows], [train.groups[row] for row in rows.tolist()])
    head = fit_head(train.activations[rows], train.labels[rows], 3, folds)
    wrong = head.logits(validation.activations).argmax(axis=1) != validation.labels
    np.testing.assert_array_equal(curve.wrong[1, 4], wrong)
    np.testing.assert_array_equal(curve.wrong[0, -1], curve.wrong[2, -1])
    assert curve.errors[0] > curve.errors[-1]


def test_groups_come_one_by_one() -> None:
    train = images(120, 0, groups=10)
    first = draw_order(train, seed=0)[:60]
    assert len({train.groups[row] for row in first}) == 5


def test_one_group_is_divided_image_by_image() -> None:
    """Three cameras, one of them in the training split: its images were one fold, and in the order of the files."""
    train = images(240, 0, groups=1)
    order = draw_order(train, seed=0)
    assert np.ptp(np.bincount(train.labels[order[:60]], minlength=3)) <= 1
    assert order.tolist() != draw_order(train, seed=1).tolist()
    curve = measure_curve(train, images(100, 2), 3, seeds=3, resamples=100)
    alone = measure_curve(images(240, 0), images(100, 2), 3, seeds=3, resamples=100)
    assert curve.errors[-1] == alone.errors[-1] < 0.5


def test_without_a_mistake_the_gain_is_not_said_to_be_none() -> None:
    curve = LearningCurve(subset_sizes(IMAGES, 2), np.zeros((3, 11, 100), np.float32), resamples=100)
    assert curve.gain(2).high == pytest.approx(0.03)


def repeated(images: Activated, times: int) -> Activated:
    """Return each image so many times, as the images of a group."""
    rows = np.repeat(np.arange(len(images)), times)
    return Activated(images.activations[rows], images.labels[rows], [f"group {row:03}" for row in rows.tolist()])


def test_validation_images_of_a_group_count_as_one() -> None:
    """Copies tell no more than one image of each: the interval is the same, and not narrower."""
    train, validation = images(200, 1), images(60, 2)
    alone = measure_curve(train, validation, 3, seeds=3, resamples=100)
    copies = measure_curve(train, repeated(validation, 5), 3, seeds=3, resamples=100)
    np.testing.assert_allclose(copies.resampled, alone.resampled, atol=1e-6)
    assert copies.gain(2).high - copies.gain(2).low == pytest.approx(alone.gain(2).high - alone.gain(2).low, abs=1e-4)
    sizes = subset_sizes(IMAGES, 2)
    faultless = LearningCurve(sizes, np.zeros((3, 11, 100), np.float32), 100, groups=np.arange(100) // 10)
    assert faultless.gain(2).high == pytest.approx(0.3)


def test_so_they_do_for_what_the_labels_of_a_class_are_worth() -> None:
    train, validation = images(240, 1), images(60, 2)
    head = fit_head(train.activations, train.labels, 3, assign_folds(train.labels, train.groups))
    alone, copies = (
        class_values(head, train, one, ["one", "two", "hard"], seeds=2, resamples=200)
        for one in (validation, repeated(validation, 5))
    )
    assert copies.best == alone.best
    for one, other in zip(copies.values, alone.values, strict=True):
        assert (one.worth.low, one.worth.high) == pytest.approx((other.worth.low, other.worth.high))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"of 10 classes needs 400 training images or more, and there are 200"):
        subset_sizes(200, 10)
    with pytest.raises(UserError, match=r"there are 3: give Split.validation a share"):
        measure_curve(images(400, 1), images(3, 2), 3, seeds=3)


def test_the_worth_of_labels_is_what_is_lost_without_them() -> None:
    train, validation = images(240, 1), images(200, 2)
    names = ["one", "two", "hard"]
    head = fit_head(train.activations, train.labels, 3, assign_folds(train.labels, train.groups))
    found = class_values(head, train, validation, names, seeds=2, resamples=200)
    assert {one.name for one in found.values} == set(names)
    # the same by hand: the images that are left of the class are given twice
    expected = []
    for seed in range(2):
        rows = np.flatnonzero(train.labels == 2)
        images_of_class = Activated(
            train.activations[rows], train.labels[rows], [train.groups[row] for row in rows.tolist()]
        )
        kept = rows[draw_order(images_of_class, seed)[:40]]
        part = np.concatenate([np.flatnonzero(train.labels != 2), kept, kept])
        inputs, targets = head.inputs(train.activations[part]), np.eye(3)[train.labels[part]]
        penalty = 240 * head.strength * np.eye(inputs.shape[1])
        solution = np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ targets)
        logits = head.sureness * (head.inputs(validation.activations) @ solution)
        before = losses_of(head.logits(validation.activations), validation.labels)
        expected.append((losses_of(logits, validation.labels) - before).mean() / 40 * 100)
    hard = next(one for one in found.values if one.name == "hard")
    assert hard.worth.value == pytest.approx(np.mean(expected))
    assert hard.worth.low <= hard.worth.value <= hard.worth.high


def test_the_class_that_is_known_least_of_is_named() -> None:
    """A class in two places, of which there are few images, and two easy ones with many."""
    few = np.flatnonzero((np.arange(1200) % 3 != 2) | (np.arange(1200) < 240))
    many, validation = images(1200, 3), images(900, 4)
    train = Activated(many.activations[few], many.labels[few], [many.groups[row] for row in few.tolist()])
    head = fit_head(train.activations, train.labels, 3, assign_folds(train.labels, train.groups))
    found = class_values(head, train, validation, ["one", "two", "hard"], seeds=10, resamples=200)
    assert found.best == "hard"
    assert "Label hard next" in found.sentence


def test_a_class_without_validation_images_is_worth_no_guess(caplog: pytest.LogCaptureFixture) -> None:
    """Its labels only make the other classes less probable, as if they did harm."""
    train, every = images(240, 1), images(300, 2)
    seen = np.flatnonzero(every.labels != 1)
    validation = Activated(every.activations[seen], every.labels[seen], [every.groups[row] for row in seen.tolist()])
    head = fit_head(train.activations, train.labels, 3, assign_folds(train.labels, train.groups))
    found = class_values(head, train, validation, ["one", "unseen", "hard"], seeds=2, resamples=200)
    assert {one.name for one in found.values} == {"one", "hard"}
    assert "What labels of “unseen” are worth is not known" in caplog.text
