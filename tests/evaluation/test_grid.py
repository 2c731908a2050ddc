"""Members x crops: scores and gains are those of single scores, intervals those of a simulation with known truth."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from weakref import ref

import numpy as np
import pytest
from made_predictions import predictions_of
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.bundle.grid import Grid
from graftline.bundle.predictor import Predictor, softmax
from graftline.data.decoding import PLAIN
from graftline.evaluation import comparison
from graftline.evaluation import grid as grid_module
from graftline.evaluation.grid import (
    GridCandidate,
    compare,
    frontier,
    mean_over,
    measure,
    score_candidates,
    verdict_notes,
)
from graftline.evaluation.metrics import score


def grid_logits(members: int, sets: int, images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (M, S, N, K) of members that are right more often the more crops there are, and labels (N,)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(0, 1, (members, sets, images, classes)).astype(np.float32)
    for column in range(sets):
        logits[:, column, np.arange(images), labels] += 1 + column
    return logits, labels


def test_rows_are_scikit_learns_scores_of_the_mean_probabilities() -> None:
    logits, labels = grid_logits(3, 2, 80, 4)
    times = np.array([[1.0, 5.0], [2.0, 9.0], [1.5, 6.0]])
    rows = compare(logits, labels, ["1", "5"], times, resamples=100)
    assert [(row.members, row.crops) for row in rows] == [
        (members, crops) for members in [(0,), (1,), (2,), (0, 1), (0, 1, 2)] for crops in ("1", "5")
    ]
    for row in rows:
        column = ["1", "5"].index(row.crops)
        mean = softmax(logits[list(row.members), column].reshape(-1, 4)).reshape(len(row.members), -1, 4).mean(axis=0)
        assert row.accuracy.value == pytest.approx(accuracy_score(labels, mean.argmax(axis=1)))
        assert row.log_loss.value == pytest.approx(log_loss(labels, mean, labels=range(4)), rel=1e-5)
        assert row.accuracy_gain.value == pytest.approx(row.accuracy.value - rows[0].accuracy.value)
        assert row.milliseconds == times[list(row.members), column].sum()
    first = rows[0].accuracy_gain
    assert (first.value, first.low, first.high) == (0, 0, 0)


def test_each_row_answers_by_the_decision_of_its_members() -> None:
    logits, labels = grid_logits(2, 1, 80, 3)
    own, ours = Decision(thresholds=(0.8, 0.1, 0.1)), Decision(costs=((0, 1, 1), (9, 0, 1), (9, 1, 0)))
    rows = compare(logits, labels, ["1"], np.ones((2, 1)), 100, decisions={(1,): own, (0, 1): ours})
    mean = mean_over(logits[:, 0], [0, 1])
    answers = [logits[0, 0].argmax(axis=1), own.answer(softmax(logits[1, 0])), ours.answer(softmax(mean))]
    assert [row.accuracy.value for row in rows] == pytest.approx([accuracy_score(labels, one) for one in answers])


def test_one_candidate_has_its_logits_in_memory_at_a_time() -> None:
    logits, labels = grid_logits(5, 1, 40, 3)
    alive, made = list[int](), list[ref[np.ndarray]]()

    def candidates() -> Iterator[GridCandidate]:
        for number, of_member in enumerate(logits[:, 0]):
            alive.append(sum(one() is not None for one in made))
            candidate = GridCandidate((number,), "1", of_member.copy(), MOST_PROBABLE, 1.0)
            made.append(ref(candidate.logits))
            yield candidate
            del candidate

    rows = score_candidates(candidates(), labels, resamples=100)
    assert alive == [0] * 5
    assert rows == score_candidates(list(candidates()), labels, resamples=100)


@pytest.mark.parametrize("groups", [None, [f"day {number % 20}" for number in range(60)]])
@pytest.mark.parametrize("answers", ["mixed", "right", "wrong"])
def test_intervals_are_those_of_the_other_scores(groups: list[str] | None, answers: str) -> None:
    logits, labels = grid_logits(1, 1, 60, 3)
    if answers != "mixed":
        logits[0, 0, np.arange(60), labels] += 9 if answers == "right" else -9
    predictions = replace(predictions_of(softmax(logits[0, 0]), labels), groups=groups)
    given, alone = predictions.logits[None, None], np.ones((1, 1))
    rows = compare(given, labels, ["1"], alone, resamples=200, seed=4, groups=predictions.drawn_groups)
    scores = score(predictions, resamples=200, seed=4)
    for name in ("accuracy", "log_loss"):
        ours, others = getattr(rows[0], name), scores[name]
        assert (ours.value, ours.low, ours.high) == pytest.approx((others.value, others.low, others.high), rel=1e-5)
    assert rows[0].accuracy.low < rows[0].accuracy.high
    assert (rows[0].accuracy.value in (0, 1)) == (answers != "mixed")


def test_the_interval_of_a_gain_has_the_truth_in_it_19_times_in_20() -> None:
    """Two classifiers that err together on some images and alone on others, 300 times; the true gain is 4 points."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        drawn = generator.random(400)
        correct = np.array([drawn < 0.80, (drawn < 0.77) | (drawn > 0.93)])  # 80 % and 84 %
        rows = compare(two_class_logits(correct), np.zeros(400, int), ["1"], np.ones((2, 1)), resamples=200)
        gain = rows[1].accuracy_gain
        hits += gain.low <= 0.04 <= gain.high
    assert 0.91 < hits / 300 < 0.98


def test_a_better_row_is_no_chance_find_though_eleven_are_looked_at() -> None:
    """Twelve equal classifiers, 200 times: the intervals alone find a gain in many tables, the verdicts in few."""
    generator = np.random.default_rng(0)
    found_by_interval = found_by_verdict = 0
    for _ in range(200):
        correct = generator.random((12, 300)) < np.where(generator.random(300) < 0.8, 0.95, 0.2)
        made = [
            GridCandidate((number,), "1", logits[0], MOST_PROBABLE, 1.0)
            for number, logits in enumerate(two_class_logits(correct))
        ]
        rows = score_candidates(made, np.zeros(300, int), resamples=100)[1:]
        found_by_interval += any(not row.accuracy_gain.low <= 0 <= row.accuracy_gain.high for row in rows)
        found_by_verdict += any(row.test is not None and row.test.verdict != "no difference shown" for row in rows)
    assert found_by_interval > 0.2 * 200
    assert found_by_verdict < 0.05 * 200


def test_rows_are_judged_as_models_are_compared() -> None:
    generator = np.random.default_rng(3)
    correct = generator.random((4, 300)) < np.array([0.7, 0.72, 0.9, 0.5])[:, None]
    logits, labels = two_class_logits(correct), np.zeros(300, int)
    for groups in (None, [f"day {number % 40}" for number in range(300)]):
        given = [replace(predictions_of(softmax(one[0]), labels), groups=groups) for one in logits]
        singles = score_candidates(
            [GridCandidate((number,), "1", one.logits, MOST_PROBABLE, 1.0) for number, one in enumerate(given)],
            labels,
            resamples=200,
            groups=given[0].drawn_groups,
        )
        compared = comparison.compare({str(number): one for number, one in enumerate(given)}, resamples=200)
        expected = [(row.won, row.lost, row.verdict, row.level) for row in compared.rows]
        tests = [row.test for row in singles if row.test is not None]
        assert [(test.won, test.lost, test.verdict, test.level) for test in tests] == expected
        assert [test.corrected_p_value for test in tests] == pytest.approx(
            [row.corrected_p_value for row in compared.rows]
        )
        assert [test.verdict for test in tests] == ["no difference shown", "better", "worse"]
        notes = verdict_notes(singles, given[0])
        assert notes == [note for note in compared.notes if "groups" not in note]
        assert notes[-1] == "The p-values are corrected for 3 comparisons (Holm)."
        assert notes[0].startswith("300 images show differences") == (groups is None)


def two_class_logits(correct: np.ndarray) -> np.ndarray:
    """Return logits (M, 1, N, 2) of members that are right where ``correct`` (M, N) says so; class 0 is true."""
    signs = np.where(correct, 2.0, -2.0)[:, None, :, None]
    logits: np.ndarray = (signs * np.array([1.0, -1.0])).astype(np.float32)
    return logits


def test_members_that_agree_about_all_images_may_still_differ() -> None:
    """50 images, of which all are right: as an interval of 0.0 [0.0, 0.0] points nobody should believe it."""
    logits, labels = grid_logits(2, 1, 50, 3)
    logits[:, 0, np.arange(50), labels] += 9
    for row in compare(logits, labels, ["1"], np.ones((2, 1)), resamples=100)[1:]:
        gain = row.accuracy_gain
        assert gain.value == 0
        assert gain.high == -gain.low == pytest.approx(1.96 * np.sqrt(2) / 52, rel=1e-3)


def test_the_mean_is_over_members_as_often_as_they_are_named() -> None:
    logits, _ = grid_logits(2, 1, 10, 3)
    expected = (2 * softmax(logits[0, 0]) + softmax(logits[1, 0])) / 3
    np.testing.assert_allclose(softmax(mean_over(logits[:, 0], [0, 1, 0])), expected, atol=1e-6)
    np.testing.assert_array_equal(mean_over(logits[:, 0], [1]), logits[1, 0])
    np.testing.assert_allclose(softmax(mean_over(logits[:, 0], [0, 1], shares=[6, 3])), expected, atol=1e-6)
    np.testing.assert_array_equal(mean_over(logits[:, 0], [1], shares=[0.1, 0.3]), logits[1, 0])


class Clock:
    """Tells a time that only networks take: 5 s more for the first batch of each, as they allocate."""

    def __init__(self) -> None:
        self.now, self.inputs = 0.0, list[int]()

    def perf_counter(self) -> float:
        return self.now

    def network(self, seconds: float) -> Predictor:
        """Return a model that takes so long for an input."""
        started = list[bool]()

        def engine(images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
            self.now += seconds * len(images) + (0 if started else 5)
            self.inputs.append(len(images))
            started.append(True)
            return [images.mean(axis=(2, 3))[:, :2]]

        preprocessing = Preprocessing(image_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
        return Predictor(("cat", "dog"), preprocessing, "", None, {}, engine, threads=1)


def test_a_measured_time_is_that_of_an_image_on_all_its_crops_once_the_network_is_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, pixels = Clock(), np.random.default_rng(0).integers(0, 256, (40, 60, 60, 3), np.uint8)
    files = [str(tmp_path / f"{number}.png") for number in range(40)]
    for image, file in zip(pixels, files, strict=True):
        Image.fromarray(image).save(file)
    monkeypatch.setattr(grid_module, "time", clock)
    for seconds in (0.02, 1e-4):
        members = (clock.network(seconds), clock.network(3 * seconds))
        clock.inputs.clear()
        times = measure(Grid(members, ("1", "10"), PLAIN, ("a", "b")), files, batch_size=7)
        expected = 1000 * seconds * np.array([[1, 10], [3, 30]])
        np.testing.assert_allclose(times, expected, rtol=1e-6)
        assert max(clock.inputs) <= 7
        assert sum(clock.inputs) <= 2 * (1 + 32) * (1 + 10), "few images tell"


def test_the_frontier_has_what_nothing_cheaper_equals() -> None:
    assert frontier([1, 2, 3, 4, 2], [0.5, 0.5, 0.7, 0.6, 0.6]) == [0, 4, 2]
    assert frontier([1, 1], [0.5, 0.5]) == [0]
