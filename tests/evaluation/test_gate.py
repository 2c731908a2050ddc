"""The gate: what it lets pass, what it refuses and why."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from gated import GATE, guard, made

from graftline.bundle.decision import Decision
from graftline.errors import UserError
from graftline.evaluation.comparison import Metric, compare
from graftline.evaluation.contestant import Contestant, frequencies, given_common_classes
from graftline.evaluation.gate import Gate, NotComparableError, examine
from graftline.evaluation.metrics import Interval
from graftline.evaluation.paired import measure_in_turns
from graftline.evaluation.primary import _why_not


def with_facts(model: Contestant, **changes: object) -> Contestant:
    assert model.facts is not None
    return replace(model, facts=replace(model.facts, **changes))  # type: ignore[arg-type]


def test_a_better_model_passes_and_a_worse_one_is_told_why() -> None:
    images, champion, challenger = made((1.0, 1.4))
    result = examine(GATE, images, challenger, champion)
    assert result.passed
    assert result.reasons == ()
    assert result.compared == "version 2 and version 1 on all 400 test images of made up."
    worse = examine(GATE, images, champion, challenger)
    assert not worse.passed
    assert worse.reasons[0].startswith("It is not as good as version 2: the log loss differs by +0.")


@pytest.mark.parametrize("metric", ["auroc", "log_loss", "accuracy_weighted"])
@pytest.mark.parametrize("groups", [None, [f"day {number // 8}" for number in range(400)]])
def test_the_difference_is_that_of_make_compare(metric: Metric, groups: list[str] | None) -> None:
    images, champion, challenger = made((1.0, 1.3))
    weights = np.random.default_rng(1).choice([1.0, 1 / 3], 400).astype(np.float32)
    images = replace(images, groups=groups, weights=weights)
    gate = replace(GATE, metric=metric, seed=3)
    gate.check_weights(weights)
    result = examine(gate, images, challenger, champion)
    rows = np.ones(len(images.paths), dtype=bool)
    both = {one.name: given_common_classes(one, ("no", "yes"), images, rows) for one in (champion, challenger)}
    (expected,) = compare(both, metric, 200, seed=3).rows
    difference, (value, low, high) = expected.differences[metric], result.guards[0].figures
    assert value == pytest.approx(difference.value)
    assert low <= difference.low + 1e-9
    assert high >= difference.high - 1e-9, "or where Student's t is, if that is farther"
    assert high - low == pytest.approx(difference.high - difference.low, rel=0.15)
    assert ("; these are of 50 groups, which count as wholes." in result.compared) == (groups is not None)


def test_a_weighted_score_without_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"^Gate\.metric is accuracy_weighted, but the test images have no weights: "):
        Gate(metric="accuracy_weighted").check_weights(None)
    Gate().check_weights(None)


def test_images_that_weigh_more_decide() -> None:
    """The challenger is right about the images that weigh much, and wrong about the others, which are more."""
    images, champion, _ = made(images=300)
    heavy = np.arange(300) % 3 == 0
    right = np.where(images.labels == "yes", 2.0, -2.0)
    logits = np.stack([np.zeros(300), np.where(heavy, right, -right)], axis=1)
    other = np.stack([np.zeros(300), np.where(heavy, -right, right)], axis=1)
    images = replace(images, weights=np.where(heavy, 10, 1).astype(np.float32))
    pair = replace(champion, name="version 2", logits=logits), replace(champion, logits=other)
    weighted, plain = (examine(replace(GATE, metric=metric), images, *pair) for metric in _ACCURACIES)
    assert (weighted.guards[0].passed, weighted.guards[0].challenger) == (True, "83.3 %")
    assert (plain.guards[0].passed, plain.guards[0].challenger) == (False, "33.3 %")


_ACCURACIES: tuple[Metric, Metric] = ("accuracy_weighted", "accuracy")


@pytest.mark.parametrize(
    ("gate", "skills", "reason"),
    [
        (replace(GATE, rule="better"), (1.2, 1.2), "It is not shown to be better than version 1: the log loss diff"),
        (
            replace(GATE, margin=0.0, least_margin=0.0),
            (1.2, 1.205),
            "It may be worse than version 1 by more than the margin of 0.000",
        ),
        (replace(GATE, metric="accuracy", margin=0.0), (1.4, 1.0), "It is not as good as version 1: the accuracy diff"),
        (replace(GATE, floor=0.1), (1.0, 1.4), "It does not surely reach the floor of 0.100: "),
        (replace(GATE, metric="accuracy", floor=0.99), (1.0, 1.4), "It does not surely reach the floor of 99.0 %: "),
    ],
)
def test_what_the_deciding_score_must_show(gate: Gate, skills: tuple[float, float], reason: str) -> None:
    images, champion, challenger = made(skills, seed=4)
    result = examine(gate, images, challenger, champion)
    assert result.guards[0].reason.startswith(reason)


def test_ten_right_images_do_not_surely_reach_a_floor() -> None:
    images, champion, challenger = made(images=10)
    logits = 4 * np.eye(2)[(images.labels == challenger.class_names[1]).astype(int)]
    gate = replace(GATE, metric="accuracy", floor=0.95)
    result = examine(gate, images, replace(challenger, logits=logits), replace(champion, logits=-logits))
    assert result.guards[0].challenger == "100.0 %"
    assert result.guards[0].reason == "It does not surely reach the floor of 95.0 %: 72.2 % to 100.0 %."


@pytest.mark.parametrize("metric", ["log_loss", "accuracy", "auroc"])
def test_a_score_that_is_not_a_number_refuses(metric: Metric) -> None:
    images, champion, challenger = made((1.0, 1.4))
    broken = challenger.logits.copy()
    broken[:2] = np.nan
    gate = replace(GATE, metric=metric)
    refused = examine(gate, images, replace(challenger, logits=broken), champion)
    told = "It gives probabilities that are not numbers for 2 of 400 test images: its training has diverged."
    assert refused.reasons[0] == told
    assert refused.guards[0].challenger == "not a number"
    (reason, *_) = examine(gate, images, champion, replace(challenger, logits=broken)).reasons
    assert reason.startswith("version 2 gives probabilities that are not numbers for 2 of 400 test images: force the")
    nowhere = Interval(float("nan"), float("nan"), float("nan"))
    assert _why_not(metric, "not_worse", 0.1, 0.02, nowhere, 0.5, "version 1"), "nor does a difference that is none"


def test_a_class_of_few_images_is_not_compared_and_that_is_said() -> None:
    images, champion, challenger = made((1.0, 1.4))
    yes = np.flatnonzero(images.labels == "yes")
    for keep, looked_at in ((9, False), (10, True)):
        labels = images.labels.copy()
        labels[yes[keep:]] = "no"
        result = examine(GATE, replace(images, labels=labels), challenger, champion)
        assert ("class yes" in [one.name for one in result.guards]) == looked_at
        assert ("; the recall of yes is not compared, with fewer than 10 images." in result.compared) != looked_at


def test_the_first_model_must_be_better_than_the_frequencies_of_the_classes() -> None:
    images, champion, _ = made()
    prior = frequencies({"no": 90, "yes": 10}, images)
    assert np.allclose(prior.probabilities[0], [91 / 102, 11 / 102])
    result = examine(GATE, images, champion, prior)
    assert result.passed
    assert [one.name for one in result.guards] == [
        "log loss",
        "ms per image",
        "megabytes",
        "golden images",
        "freeze check",
    ]
    assert result.flips.empty
    guessing = replace(champion, logits=np.random.default_rng(0).normal(0, 0.01, champion.logits.shape))
    balanced = frequencies({"no": 50, "yes": 50}, images)
    refused = examine(GATE, images, guessing, balanced)
    assert refused.reasons[0].startswith("It is not shown to be better than class frequencies")


def test_a_class_and_a_slice_that_are_worse() -> None:
    images, champion, challenger = made((1.0, 1.6), images=600)
    dark = np.arange(600) % 6 == 0
    columns = pd.DataFrame({"camera": np.where(dark, "old", "new"), "all": 1})
    images = replace(images, columns=columns)
    flipped = np.where(dark[:, None], -challenger.logits, challenger.logits)
    result = examine(GATE, images, replace(challenger, logits=flipped), champion)
    failing = [one.name for one in result.guards if not one.passed]
    assert "slice camera old" in failing
    assert "slice camera new" not in failing
    assert any(reason.startswith("The accuracy on slice camera old is surely worse by") for reason in result.reasons)
    worst = [one.label for one in result.guards if one.told and one.kind == "class"]
    assert len(worst) == 1 or all("class" in label for label in worst)

    one_class = np.where((images.labels == "yes")[:, None], -challenger.logits, 3 * challenger.logits)
    result = examine(GATE, images, replace(challenger, logits=one_class), champion)
    assert not guard(result, "class yes").passed
    assert guard(result, "class no").passed


def test_what_turns_wrong_is_listed_the_surest_first() -> None:
    images, champion, challenger = made((1.2, 1.2))
    result = examine(GATE, images, challenger, champion)
    turned = (champion.answers == images.labels) & (challenger.answers != images.labels)
    assert sorted(result.flips["path"]) == sorted(np.array(images.paths)[turned])
    assert result.flips["probability"].is_monotonic_decreasing
    assert (result.flips["challenger"] != result.flips["label"]).all()
    assert guard(result, "right, now wrong").challenger == str(turned.sum())
    limited = examine(replace(GATE, flips=0.01), images, challenger, champion)
    assert f"{turned.sum()} images turn from right to wrong, " in guard(limited, "right, now wrong").reason


def test_calibration_that_is_worse() -> None:
    images, champion, challenger = made((1.2, 1.25), images=800)
    sure = replace(challenger, logits=20 * challenger.logits)
    result = examine(replace(GATE, metric="accuracy"), images, sure, champion)
    assert guard(result, "calibration error").reason.startswith(
        "The calibration error is surely larger by more than 0.02"
    )
    assert guard(examine(GATE, images, challenger, champion), "calibration error").passed


@pytest.mark.parametrize(
    ("gate", "facts", "name", "reason"),
    [
        (GATE, {"milliseconds": 2.1}, "ms per image", "It has 2.1 ms per image, more than 2 times the champion's 1.0."),
        (replace(GATE, milliseconds=0.5), {}, "ms per image", "It has 1.0 ms per image, more than 0.5."),
        (GATE, {"megabytes": 3.0}, "megabytes", "It has 3.0 megabytes, more than 2 times the champion's 1.0."),
        (GATE, {"golden_problem": "It differs."}, "golden images", "It differs."),
        (GATE, {"frozen": None}, "freeze check", "Its training has no record that what was frozen stayed as it was"),
        (GATE, {"input": "gray"}, "input and output", "Its input is gray, the champion's is RGB."),
    ],
)
def test_what_is_known_of_the_model(gate: Gate, facts: dict[str, object], name: str, reason: str) -> None:
    images, champion, challenger = made((1.0, 1.4))
    result = examine(gate, images, with_facts(challenger, **facts), champion)
    assert [one.name for one in result.guards if not one.passed] == [name]
    assert guard(result, name).reason.startswith(reason)


def test_an_answer_that_is_no_longer_given() -> None:
    images, champion, challenger = made((1.0, 1.4))
    result = examine(GATE, images, challenger, with_facts(champion, output=("set",)))
    assert result.reasons == ("It no longer answers set, which the champion does.",)
    assert examine(GATE, images, with_facts(challenger, output=("set",)), champion).passed


def with_new_class(model: Contestant, rows: np.ndarray) -> Contestant:
    """Return a model that also knows the class "new", which it sees in some of the images."""
    logit = np.where(rows, 9.0, -9.0)[:, None]
    return replace(model, class_names=("new", *model.class_names), logits=np.hstack([logit, model.logits]))


def test_a_new_class_is_compared_on_what_the_champion_can_answer() -> None:
    images, champion, challenger = made((1.0, 1.4))
    new = np.arange(400) < 50
    images = replace(images, labels=np.where(new, "new", images.labels))
    grown = with_new_class(challenger, new)
    result = examine(GATE, images, grown, champion)
    assert result.passed
    assert result.num_images == 350
    assert "on 350 of 400 test images of made up; version 1 does not know new, so that both are" in result.compared
    assert guard(result, "classes").difference == "+ new"
    assert examine(replace(GATE, classes="same"), images, grown, champion).reasons[0].startswith("It knows new, which")
    gone = examine(GATE, images, champion, grown)
    assert "It no longer knows new, which whoever asks it may wait for." in gone.reasons
    assert examine(replace(GATE, classes="any"), images, champion, grown).guards[-2].passed


def test_a_new_class_that_is_answered_for_others_counts_as_wrong() -> None:
    images, champion, challenger = made((1.0, 1.4))
    everywhere = with_new_class(challenger, np.arange(400) < 200)  # the labels stay: nothing of it is there
    result = examine(GATE, images, everywhere, champion)
    assert result.guards[0].passed, "given that it is one of the classes that both know, it is better"
    assert not guard(result, "accuracy").passed


def test_costs_count_for_both_where_a_class_is_new() -> None:
    images, champion, _ = made()
    costs = ((0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 9.0, 0.0))  # of new, no and yes
    grown = with_new_class(champion, np.zeros(400, dtype=bool))
    grown = replace(grown, name="version 2", decision=Decision(costs=costs))
    costly = replace(champion, decision=Decision(costs=tuple(row[1:] for row in costs[1:])))
    result = examine(replace(GATE, metric="accuracy"), images, grown, costly)
    assert result.guards[0].figures == (0.0, 0.0, 0.0)
    assert (costly.answers != champion.answers).any()


def test_images_that_trained_the_champion_are_left_out() -> None:
    images, champion, challenger = made((1.0, 1.4))
    seen = np.arange(400) < 100
    result = examine(GATE, replace(images, seen=seen), challenger, champion)
    assert result.num_images == 300
    assert result.compared.endswith("; 100 images that trained version 1 are left out.")
    with pytest.raises(UserError, match=r"^None of the 400 test images can be compared on: version 1 was trained on"):
        examine(GATE, replace(images, seen=np.ones(400, dtype=bool)), challenger, champion)


def test_the_order_of_classes_does_not_matter_nor_does_a_decision_by_costs() -> None:
    images, champion, challenger = made((1.0, 1.4))
    costly = replace(challenger, decision=Decision(costs=((0.0, 1.0), (3.0, 0.0))))
    other = Decision(costs=((0.0, 3.0), (1.0, 0.0)))
    turned = replace(challenger, class_names=("yes", "no"), logits=challenger.logits[:, ::-1], decision=other)
    first, second = (examine(GATE, images, one, champion) for one in (costly, turned))
    assert guard(first, "accuracy") == guard(second, "accuracy")
    assert np.allclose(first.guards[0].figures, second.guards[0].figures)
    gate = replace(GATE, metric="accuracy")
    same, plain = (examine(gate, images, champion, replace(one, name="version 0")) for one in (costly, challenger))
    again = examine(gate, images, champion, replace(turned, name="version 0"))
    assert again.guards[0].figures == pytest.approx(same.guards[0].figures)
    assert same.guards[0].figures != pytest.approx(plain.guards[0].figures)  # its costs change answers


def test_models_without_common_classes() -> None:
    images, champion, challenger = made()
    other = replace(challenger, class_names=("cat", "yes"))
    with pytest.raises(NotComparableError, match=r"^version 2 and version 1 have 1 class in common, so that nothing "):
        examine(GATE, images, other, champion)


@pytest.mark.parametrize(
    "values",
    [
        *({"margin": 1.1}, {"accuracy": -0.1}, {"calibration": float("nan")}, {"resamples": 9}, {"seed": -1}),
        *({"slower": 0.0}, {"megabytes": float("nan")}, {"floor": float("inf")}, {"flips": 2.0}),
        *({"least_margin": -0.1}, {"least_margin": float("nan")}),
    ],
)
def test_settings_that_cannot_be(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"^Gate\.\w+ is "):
        Gate(**values)  # type: ignore[arg-type]


def test_two_things_are_timed_in_turns() -> None:
    calls: list[str] = []

    def timed(name: str, times: list[float]) -> float:
        calls.append(name)
        return times.pop()

    first, second = [3.0, 1.0, 2.0], [6.0, 5.0, 7.0]
    assert measure_in_turns([lambda: timed("a", first), lambda: timed("b", second)], 3) == [1.0, 5.0]
    assert calls == ["a", "b"] * 3
