"""What chance does to a window, and what lies beyond it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import energy_distance as energy_of_numbers
from scipy.stats import ks_2samp

from graftline.bundle.reference import Observations, Projection, Reference
from graftline.errors import UserError
from graftline.monitoring.accuracy import estimate_accuracy
from graftline.monitoring.drift import Chance, find_drift, most_moved
from graftline.monitoring.two_sample import (
    energy_distance,
    largest_gap,
    observed_weights,
    resampled_weights,
    share_distance,
)

WIDTH = 6  # of an embedding


def observe(count: int, seed: int, moved: float = 0.0, bright: float = 0.0, sure: float = 5.0) -> Observations:
    generator = np.random.default_rng(seed)
    embeddings = generator.normal(moved, 1, (count, WIDTH))
    facts = np.stack([generator.normal(bright, 1, count), *generator.random((2, count)), *np.ones((2, count))], axis=1)
    return Observations(
        embeddings.astype(np.float16),
        generator.integers(0, 3, count).astype(np.int32),
        generator.beta(sure, 1, count).astype(np.float32),
        facts.astype(np.float32),
    )


def refer(observed: Observations, seed: int = 0, groups: np.ndarray | None = None) -> Reference:
    """Return a reference whose model is right as often as it is sure."""
    right = np.random.default_rng(seed).random(len(observed)) < observed.confidences
    labels = np.where(right, observed.answers, (observed.answers + 1) % 3).astype(np.int32)
    groups = np.arange(len(observed)) if groups is None else groups
    return Reference(observed, labels, groups.astype(np.int32), Projection(np.eye(WIDTH, dtype=np.int8), 1.0))


def test_distances_are_those_of_other_libraries() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(40, 1)), generator.normal(0.5, 1, (30, 1))
    both, weights = np.concatenate([first, second]).astype(np.float32), observed_weights(40, 30)
    usual = cdist(first, first).sum() / (40 * 39)
    expected = energy_of_numbers(first[:, 0], second[:, 0]) ** 2 / (2 * usual)
    np.testing.assert_allclose(energy_distance(both, 40)(weights), [expected], rtol=1e-4)
    expected = ks_2samp(first[:, 0], second[:, 0]).statistic
    np.testing.assert_allclose(largest_gap(both[:, 0], len(both))(weights), [expected], atol=1e-5)
    rounded = np.concatenate([first[:, 0].round(), second[:, 0].round()])
    expected = ks_2samp(first[:, 0].round(), second[:, 0].round()).statistic
    np.testing.assert_allclose(largest_gap(rounded, 40)(weights), [expected], atol=1e-5, err_msg="with ties")
    classes = np.array([0] * 40 + [0] * 15 + [2] * 15)
    np.testing.assert_allclose(share_distance(classes)(weights), [0.5])
    classes = np.array([0] * 20 + [1] * 20 + [0] * 15 + [2] * 6 + [3] * 9)
    np.testing.assert_allclose(share_distance(classes)(weights), [np.sqrt((0.5**2 + 0.2**2 + 0.3**2) / 2)], rtol=1e-4)


def test_a_gap_is_looked_for_where_the_reference_has_numbers() -> None:
    """Resamples have no other places. What the reference has several times may be absent just below, too."""
    generator = np.random.default_rng(0)
    known, new = generator.normal(size=40), generator.normal(size=30)
    at_known = [abs((known <= place).mean() - (new <= place).mean()) for place in known]
    found = largest_gap(np.concatenate([known, new]), 40)(observed_weights(40, 30))
    np.testing.assert_allclose(found, [max(at_known)], atol=1e-5)
    for sizes, others in (([2, 2, 2, 2], [2, 1]), ([2, 2, 2, 2], [2, 3]), ([1, 1, 2, 2], [1, 1.5])):
        np.testing.assert_allclose(largest_gap(np.array([*sizes, *others]), 4)(observed_weights(4, 2)), [0.5])


def test_a_gap_by_chance_is_as_large_in_a_window_as_in_resamples() -> None:
    generator, weights = np.random.default_rng(0), observed_weights(40, 400)
    fresh = [largest_gap(generator.random(440), 40)(weights)[0] for _ in range(2_000)]
    gap = largest_gap(generator.random(40), 40)
    resampled = np.concatenate([gap(some) for some in resampled_weights(np.arange(40), 400, 4_000, seed=0)])
    assert np.mean(fresh) == pytest.approx(resampled.mean(), rel=0.03), "it was 8 % larger at all places"


@pytest.mark.parametrize("per_group", [1, 10])
def test_resamples_vary_as_much_as_fresh_samples(per_group: int) -> None:
    """The mean is known where images of a group are equal: that of one image of each, once for either sample."""
    numbers = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    groups = np.repeat(np.arange(20), per_group)
    apart = energy_distance(numbers[groups], len(groups))
    weights = np.concatenate(list(resampled_weights(groups, 5 * per_group, 20_000, seed=0)))
    usual = (
        cdist(numbers, numbers).sum()
        / (20 * 19)
        / (cdist(numbers[groups], numbers[groups]).sum() / (len(groups) * (len(groups) - 1)))
    )
    assert apart(weights).mean() == pytest.approx(usual * (1 / 20 + 1 / 5) / 2, rel=0.01), "it was 5 % less"


def test_a_model_of_many_classes_rings_no_more_often() -> None:
    """A reference that has fewer images than there are classes lacks many of them, and so do its resamples."""
    weights, p_values = observed_weights(100, 100), []
    for seed in range(200):
        answers = np.random.default_rng(seed).integers(0, 100, 200)
        found = share_distance(answers)(weights)
        resampled = np.concatenate(
            [share_distance(answers[:100])(some) for some in resampled_weights(np.arange(100), 100, 200, seed)]
        )
        p_values.append(np.mean(resampled >= found))
    assert 0.4 < np.mean(p_values) < 0.6
    assert np.mean(np.array(p_values) < 0.05) < 0.1, "it was 0.76"


def test_images_of_a_group_are_drawn_together() -> None:
    groups = np.repeat(np.arange(10), 4)
    (weights,) = resampled_weights(groups, 8, 100, seed=0)
    assert weights.shape == (100, 40)
    np.testing.assert_allclose(weights.sum(axis=1), 0, atol=1e-6)
    assert (weights.reshape(100, 10, 4) == weights.reshape(100, 10, 4)[:, :, :1]).all()


@pytest.mark.long
def test_the_budget_is_kept_whatever_the_size_of_the_window() -> None:
    """Of fresh samples of one distribution, about as many ring as the budget allows; one in 10 here, to see it."""
    rings = []
    for seed in range(40):
        reference = refer(observe(150, 2 * seed))
        window = observe((30, 150, 600)[seed % 3], 2 * seed + 1)
        rings.append(Chance.of(reference, len(window), 10, seed).judge(window).rings)
    assert 0 <= sum(rings) <= 11, "of 40 expected 4; 12 and more would be a chance of 1 in 2,000"


def test_what_changed_is_named() -> None:
    reference = refer(observe(200, 0))
    drift = find_drift(reference, observe(200, 1, bright=1.0))
    assert drift.rings
    assert [change.name for change in drift.changes if change.rings] == ["brightness"]
    assert drift.p_value <= 1 / 365
    assert drift["brightness"].distance > drift["brightness"].limit > drift["brightness"].usual
    assert drift["aspect"].p_value == 1, "it is the same for all images"
    assert find_drift(reference, observe(200, 2, moved=0.6)).changes[0].name == "embedding"


def test_a_reference_of_few_groups_says_less() -> None:
    observed, window = observe(200, 0), observe(200, 1, bright=0.4)
    observed.facts[:, 0] = np.repeat(np.random.default_rng(2).normal(size=20), 10)  # images of a group look alike
    alone = find_drift(refer(observed), window)["brightness"]
    grouped = find_drift(refer(observed, groups=np.repeat(np.arange(20), 10)), window)["brightness"]
    assert grouped.limit > 1.5 * alone.limit


def test_a_network_without_embeddings_is_watched_by_the_rest() -> None:
    plain, window = observe(200, 0), observe(200, 1, sure=1.0)
    plain, window = (
        Observations(np.empty((200, 0), np.float16), one.answers, one.confidences, one.facts) for one in (plain, window)
    )
    drift = find_drift(refer(plain), window)
    assert "embedding" not in {change.name for change in drift.changes}
    assert drift.changes[0].name == "confidence"
    assert "no embedding" in estimate_accuracy(refer(plain), window, drift).sentence


def test_the_images_that_moved_it_most_come_first() -> None:
    reference, window = refer(observe(200, 0)), observe(100, 1)
    window.embeddings[[3, 50]] += 8
    window.facts[7, 0] = 40
    drift = find_drift(reference, window)
    assert set(most_moved(reference, window, drift["embedding"])[:2].tolist()) == {3, 50}
    assert most_moved(reference, window, drift["brightness"])[0] == 7
    most = np.argmax(np.bincount(window.answers) - np.bincount(reference.observed.answers) / 2)
    assert window.answers[most_moved(reference, window, drift["answers"])[0]] == most


def test_accuracy_is_estimated_by_how_sure_the_model_is() -> None:
    reference, window = refer(observe(400, 0)), observe(400, 1, sure=3.5)
    right = np.random.default_rng(5).random(400) < window.confidences
    found = estimate_accuracy(reference, window, find_drift(reference, window))
    assert found.estimate is not None
    assert found.estimate.low <= right.mean() <= found.estimate.high
    assert found.reference.value == reference.correct.mean()


def test_the_accuracy_of_few_groups_is_known_less_well() -> None:
    """Images of a group are right or wrong together: 20 groups of 10 tell as much as 20 images."""
    observed, window = observe(200, 0), observe(200, 1)
    right = np.repeat(np.arange(20) % 4 > 0, 10)
    labels = np.where(right, observed.answers, (observed.answers + 1) % 3).astype(np.int32)
    alone = replace(refer(observed), labels=labels)
    grouped = replace(alone, groups=np.repeat(np.arange(20, dtype=np.int32), 10))
    found = [estimate_accuracy(one, window, find_drift(one, window)) for one in (alone, grouped)]
    for few, many in ((found[1].estimate, found[0].estimate), (found[1].reference, found[0].reference)):
        assert few is not None
        assert many is not None
        assert few.value == pytest.approx(many.value, abs=0.01)
        assert few.high - few.low > 1.5 * (many.high - many.low)


def test_accuracy_is_not_known_where_nothing_was_calibrated() -> None:
    reference = refer(observe(400, 0))
    window = observe(400, 1, moved=3.0)
    found = estimate_accuracy(reference, window, find_drift(reference, window))
    assert found.estimate is None
    assert found.sentence.startswith("The accuracy cannot be known without labels: ")
    small = refer(observe(30, 0))
    few = estimate_accuracy(small, window, find_drift(small, window))
    assert few.estimate is None
    assert few.sentence == "The accuracy cannot be estimated: the reference has 30 images, too few to go by."


def test_what_cannot_be_compared_is_refused() -> None:
    reference = refer(observe(50, 0))
    with pytest.raises(
        UserError, match="The window has 19 images to compare, and 20 are the fewest that can be compared"
    ):
        find_drift(reference, observe(19, 1))
    with pytest.raises(UserError, match=r"checks_per_alarm is 1, it must be at least 2"):
        find_drift(reference, observe(50, 1), checks_per_alarm=1)


@pytest.mark.parametrize(
    ("images", "groups", "told"),
    [(1, 1, "with, 1: it"), (14, 14, "with, 14: it"), (100, 1, "100 in 1 group:"), (100, 14, "100 in 14 groups:")],
)
def test_a_reference_that_cannot_tell_what_chance_does_is_refused(images: int, groups: int, told: str) -> None:
    """Windows of unchanged images rang nearly always."""
    reference = refer(observe(images, 0), groups=np.arange(images) % groups)
    with pytest.raises(UserError, match=told):
        find_drift(reference, observe(50, 1))


def test_a_reference_of_equal_embeddings_is_compared_with() -> None:
    """A network that sees the same in each image: a window of others rings, and no distance is NaN."""
    known = observe(40, 0)
    known.embeddings[:] = 1
    same, others = observe(40, 1), observe(40, 2)
    same.embeddings[:] = 1
    assert find_drift(refer(known), same)["embedding"].distance == 0
    assert find_drift(refer(known), others)["embedding"].rings


def test_a_few_images_of_another_size_are_no_drift_where_the_reference_has_one_size() -> None:
    """Three of a thousand had their share of a chance to be in the reference, too; a hundred have not."""
    reference, window = refer(observe(400, 0)), observe(1_000, 1)
    window.facts[:3, 4] = 2
    assert not find_drift(reference, window)["megapixels"].rings
    window.facts[:100, 4] = 2
    change = find_drift(reference, window)["megapixels"]
    assert change.rings
    assert 0.01 < change.limit < change.distance
