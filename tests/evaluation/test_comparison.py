"""Comparisons: paired, whatever the order of images and classes; refused where they would compare other things."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from weakref import ref

import numpy as np
import pytest
from made_predictions import predictions_of
from scipy.stats import ttest_rel
from sklearn.metrics import log_loss, roc_auc_score

from benchmarks.comparison import classifiers, coverage, false_alarms, power
from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.errors import UserError
from graftline.evaluation.bootstrap import multiplicities
from graftline.evaluation.comparison import Comparison, compare
from graftline.evaluation.metrics import score
from graftline.evaluation.predictions import Predictions


def made(num_models: int = 2, num_images: int = 200, num_classes: int = 3, seed: int = 0) -> dict[str, Predictions]:
    """Return models of the same images, each better than the one before it."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_images)
    common = generator.normal(size=(num_images, num_classes))
    models = {}
    for number in range(num_models):
        logits = common + generator.normal(size=(num_images, num_classes))
        logits[np.arange(num_images), labels] += 1 + number
        weights = generator.choice([1.0, 1 / 3], num_images) if number == 0 else None
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        models[f"model {number}"] = predictions_of(probabilities, labels, ["ant", "bee", "cow"][:num_classes], weights)
    return models


def in_other_order(predictions: Predictions, seed: int = 1) -> Predictions:
    """Return the same with images and classes shuffled."""
    generator = np.random.default_rng(seed)
    rows, columns = generator.permutation(len(predictions.labels)), [2, 0, 1]
    return replace(
        predictions,
        paths=[predictions.paths[row] for row in rows],
        logits=predictions.logits[rows][:, columns],
        labels=np.argsort(columns)[predictions.labels[rows]],
        sha256=[predictions.sha256[row] for row in rows],
        class_names=tuple(predictions.class_names[column] for column in columns),
        decision=predictions.decision.reordered(columns),
    )


Metric = Callable[[Predictions, np.ndarray], float]
BY_THE_BOOK: dict[str, Metric] = {
    "accuracy": lambda p, rows: float((p.predicted == p.labels)[rows].mean()),
    "log_loss": lambda p, rows: float(log_loss(p.labels[rows], p.probabilities[rows])),
    "auroc": lambda p, rows: float(roc_auc_score(p.labels[rows], p.probabilities[rows, 1])),
}


def test_differences_are_those_of_the_same_resamples() -> None:
    models = made(num_classes=2)
    (row,) = compare(models, resamples=60, seed=3).rows
    one, other = models.values()
    counts = np.concatenate(list(multiplicities(200, 60, 3)), axis=1)
    drawn = [np.repeat(np.arange(200), column) for column in counts.T]
    for name, metric in BY_THE_BOOK.items():
        everything = np.arange(200)
        assert row.differences[name].value == pytest.approx(metric(other, everything) - metric(one, everything))
        resampled = [metric(other, rows) - metric(one, rows) for rows in drawn]
        expected = np.quantile(resampled, [0.025, 0.975])
        assert [row.differences[name].low, row.differences[name].high] == pytest.approx(expected)


def test_scores_are_those_of_each_model_alone() -> None:
    models = made()
    comparison = compare(models, resamples=200)
    for name, found in zip(models, (comparison.reference, *comparison.rows), strict=True):
        alone = score(models[name], 200)
        assert found.name == name
        for metric in ("accuracy", "auroc", "log_loss"):
            assert found.scores[metric] == alone[metric]


DECISIONS = (MOST_PROBABLE, Decision(thresholds=(0.9, 0.1, 0.4)), Decision(costs=((0, 1, 9), (1, 0, 1), (1, 2, 0))))


@pytest.mark.parametrize("decision", DECISIONS)
def test_the_order_of_images_and_classes_does_not_matter(decision: Decision) -> None:
    models = {name: replace(one, decision=decision) for name, one in made().items()}
    shuffled = {**models, "model 1": in_other_order(models["model 1"])}
    straight, found = compare(models, resamples=200), compare(shuffled, resamples=200)
    assert (found.rows[0].won, found.rows[0].lost) == (straight.rows[0].won, straight.rows[0].lost)
    for name, difference in straight.rows[0].differences.items():
        assert found.rows[0].differences[name].value == pytest.approx(difference.value)
        assert found.rows[0].differences[name].high == pytest.approx(difference.high)


def test_that_models_answer_by_other_decisions_is_told() -> None:
    """The same probabilities, answered by thresholds."""
    model = made()["model 0"]
    other = in_other_order(replace(model, decision=DECISIONS[1]))
    found = compare({"one": model, "other": other}, resamples=100)
    assert verdicts(found) == ["worse"]
    assert found.notes[0] == (
        "The models do not answer alike: other answers by thresholds of its own, one answers with the most probable "
        "class. AUROC, log loss and Brier score compare the networks alone."
    )
    assert compare({"one": model, "other": other}, "log_loss", resamples=100).decision_note == ""
    alike = {"one": replace(model, decision=replace(DECISIONS[1], set_threshold=0.2)), "other": other}
    assert compare(alike, resamples=100).decision_note == ""


def test_of_many_images_and_classes_the_auroc_is_computed_where_it_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    models = made()
    usual = compare(models, "auroc", resamples=100).rows[0]
    monkeypatch.setattr("graftline.evaluation.comparison.LONG_WORK", 200 * 3 * 100 - 1)
    row = compare(models, resamples=100).rows[0]
    assert row.differences == {name: one for name, one in usual.differences.items() if name != "auroc"}
    assert row.scores == {name: one for name, one in usual.scores.items() if name != "auroc"}
    assert compare(models, "auroc", resamples=100).rows[0] == usual


def test_beside_the_first_one_model_is_in_memory_at_a_time() -> None:
    """Of a mapping that reads files, as that of the stage compare."""
    models, alive, read = made(5), list[int](), list[ref[np.ndarray]]()

    class Files(Mapping[str, Predictions]):
        def __len__(self) -> int:
            return len(models)

        def __iter__(self) -> Iterator[str]:
            return iter(models)

        def __getitem__(self, name: str) -> Predictions:
            alive.append(sum(one() is not None for one in read))
            found = replace(models[name], logits=models[name].logits.copy())
            read.append(ref(found.logits))
            return found

    found = compare(Files(), resamples=100)
    assert alive == [0, *[1] * 9]
    assert found == compare(models, resamples=100)


def test_weights_are_those_of_the_first() -> None:
    assert "accuracy_weighted" in compare(made(), resamples=100).rows[0].differences


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "auroc"])
def test_what_is_much_better_is_called_so_and_from_the_other_side_worse(metric: str) -> None:
    one, other = made(num_images=400).items()
    assert verdicts(compare(dict([one, other]), metric, resamples=200)) == ["better"]  # type: ignore[arg-type]
    assert verdicts(compare(dict([other, one]), metric, resamples=200)) == ["worse"]  # type: ignore[arg-type]


def test_the_same_answers_are_no_difference() -> None:
    model = made()["model 0"]
    (row,) = compare({"one": model, "other": model}, "log_loss", resamples=100).rows
    assert (row.won, row.lost, row.p_value, row.verdict) == (0, 0, 1.0, "no difference shown")


@pytest.mark.parametrize("groups", [None, [f"day {number // 4}" for number in range(200)]])
def test_models_that_agree_about_every_image_may_still_differ(groups: list[str] | None) -> None:
    """Bonett and Price's interval, of one discordant image, or group, added to either side."""
    model = replace(made()["model 0"], groups=groups)
    found = compare({"one": model, "other": replace(model, logits=2 * model.logits)}, resamples=100).rows[0]
    difference, units = found.differences["accuracy"], 200 if groups is None else 50
    assert difference.value == 0
    assert difference.high == -difference.low == pytest.approx(1.96 * np.sqrt(2) / (units + 2), rel=0.06)


def test_several_comparisons_are_corrected() -> None:
    models = made(4, num_images=120)
    rows = compare(models, resamples=100).rows
    smallest = min(rows, key=lambda row: row.p_value)
    assert smallest.corrected_p_value == pytest.approx(3 * smallest.p_value)


def test_a_verdict_never_contradicts_what_the_images_could_show() -> None:
    for seed in range(12):
        comparison = compare(made(3, num_images=100, seed=seed), resamples=100)
        for row in comparison.rows:
            least = comparison.smallest_difference(row)
            shown = least is not None and abs(row.differences["accuracy"].value) >= least - 1e-12
            assert (row.verdict != "no difference shown") == shown


def test_models_that_agree_do_not_count_among_what_the_images_show() -> None:
    models = made()
    found = compare({**models, "the same": models["model 0"]}, resamples=100)
    row, same = found.rows
    least = found.smallest_difference(row)
    findable = found.findable_difference(row)
    assert least is not None
    assert findable is not None
    assert found.smallest_difference(same) is None
    assert found.notes[0] == (
        f"200 images show differences in accuracy of {100 * least:.1f} points or more, and a true one of "
        f"{100 * findable:.1f} points four times in five."
    )


def test_what_could_not_be_found_is_not_promised() -> None:
    """6 of 656 images tell two models apart, 0.9 points at most: four times in five would take 1.0."""
    labels, probabilities = np.zeros(656, np.int64), np.tile([0.9, 0.1], (656, 1))
    better = predictions_of(probabilities.copy(), labels)
    probabilities[:6] = [0.4, 0.6]
    worse = predictions_of(probabilities, labels)
    found = compare({"worse": worse, "better": better}, resamples=100)
    assert (found.rows[0].won, found.rows[0].lost) == (6, 0)
    assert found.notes == ["656 images show differences in accuracy of 0.9 points or more."]


@pytest.mark.long
def test_intervals_have_the_truth_in_them_and_alarms_are_rare() -> None:
    """The rates of benchmarks/comparison.py, within three standard errors of so few tests."""
    assert all(0.85 <= share <= 1 for share in coverage(50).values())
    assert false_alarms(30, 2, "log_loss") <= 0.17
    assert false_alarms(20, 4) <= 0.2
    truth, claimed, found = power(20)
    assert claimed == pytest.approx(truth, rel=0.15)
    assert 0.5 <= found <= 1


def test_few_images_are_compared_by_student_s_t() -> None:
    one, other = classifiers([1.5, 1.8], np.random.default_rng(2), images=8)
    (row,) = compare({"one": one, "other": other}, "log_loss", resamples=4000).rows
    assert row.p_value == pytest.approx(ttest_rel(*(losses(model) for model in (one, other))).pvalue, rel=0.1)


def losses(model: Predictions) -> np.ndarray:
    found: np.ndarray = -np.log(model.probabilities[np.arange(len(model.labels)), model.labels])
    return found


def test_a_single_image_shows_no_difference() -> None:
    one, other = classifiers([0.5, 3.0], np.random.default_rng(0), images=1)
    assert verdicts(compare({"one": one, "other": other}, "log_loss", resamples=100)) == ["no difference shown"]


def grouped(seed: int, groups: int = 25, each: int = 12) -> dict[str, Predictions]:
    """Return two equally good models, each of which is right or wrong about all images of a group."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, groups * each)
    models = {}
    for name in ("one", "other"):
        right = np.repeat(generator.random(groups) < 0.7, each)
        probability = np.where(right == (labels == 1), 0.8, 0.2)
        models[name] = predictions_of(np.stack([1 - probability, probability], axis=1), labels, ["no", "yes"])
    names = [f"patient {number // each}" for number in range(len(labels))]
    return {name: replace(one, groups=names) for name, one in models.items()}


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_groups_do_not_raise_alarms(metric: str) -> None:
    """Of 60 comparisons of equally good models 3 are expected to be told apart, 9 or more once in 300 such tests."""
    found = [compare(grouped(seed), metric, resamples=100) for seed in range(60)]  # type: ignore[arg-type]
    assert sum(verdicts(one) != ["no difference shown"] for one in found) < 9
    images = [{name: replace(one, groups=None) for name, one in grouped(seed).items()} for seed in range(20)]
    alarms = sum(verdicts(compare(one, metric, resamples=100)) != ["no difference shown"] for one in images)  # type: ignore[arg-type]
    assert alarms > 5, "as if images of a group were independent"


def test_groups_are_told_and_found_in_either_file() -> None:
    models = grouped(0)
    old = {"one": replace(models["one"], groups=None), "other": models["other"]}
    found = compare(old, resamples=100)
    assert found == compare(models, resamples=100)
    assert found.notes == [
        "The 300 images are of 25 groups, which are drawn whole: intervals allow for images of one group being alike."
    ]
    assert found.smallest_difference(found.rows[0]) is None


def test_other_images_are_refused() -> None:
    one, other = classifiers([1.5, 1.5], np.random.default_rng(0), images=50)
    with pytest.raises(
        UserError, match=r"^b was tested on other images \(digest elsewhere\) than a \(digest made up\)"
    ):
        compare({"a": one, "b": replace(other, split_digest="elsewhere")})


def test_other_classes_are_refused() -> None:
    one, other = classifiers([1.5, 1.5], np.random.default_rng(0), images=50)
    with pytest.raises(UserError, match=r"^b and a do not know the same classes \(maybe, yes only one of them does\)"):
        compare({"a": one, "b": replace(other, class_names=("no", "maybe"))})


def test_one_alone_is_refused() -> None:
    with pytest.raises(UserError, match=r"^A comparison needs two models, and there is only a: name another\.$"):
        compare({"a": classifiers([1.5], np.random.default_rng(0), images=50)[0]})


def test_a_score_that_the_images_do_not_define_is_refused() -> None:
    models = made(num_classes=2)
    models = {name: replace(one, labels=np.zeros_like(one.labels)) for name, one in models.items()}
    with pytest.raises(UserError, match=r"^These 200 images define no AUROC: compare another score\.$"):
        compare(models, "auroc", resamples=100)


def verdicts(comparison: Comparison) -> list[str]:
    return [row.verdict for row in comparison.rows]
