"""The rule by which a transform is used, on predictions that are made up so that one knows."""

import json

import numpy as np
import pytest

from graftline.freezing.measurement import Difference
from graftline.training.policy_choice import CandidateResult, HeadKnowledge, PolicyChoice, within_margin

NAMES = ("a", "b", "c", "d")
LABELS = np.repeat(np.arange(4), 50)
ROWS = np.arange(200)
SURE = 5.0 * np.eye(4)[LABELS]  # logits (200, 4): the true class has e^5 / (e^5 + 3) = 0.98
KNOWLEDGE = HeadKnowledge.of(SURE, LABELS, np.full(4, 0.25))


def turned(share: float) -> np.ndarray:
    """Return the logits where a transform makes the next class of a share of the images of each class."""
    changed = np.tile(np.arange(50) < 50 * share, 4)
    return np.where(changed[:, None], np.roll(SURE, 1, axis=1), SURE)


def judge(logits: np.ndarray, rows: np.ndarray = ROWS) -> CandidateResult:
    return KNOWLEDGE.judge("turn", logits, rows, NAMES)


def test_what_is_known_is_more_than_the_frequencies_say() -> None:
    assert KNOWLEDGE.known.value == pytest.approx(np.exp(5) / (np.exp(5) + 3) - 0.25)
    guess = HeadKnowledge.of(np.zeros((200, 4)), LABELS, np.full(4, 0.25))
    assert guess.known.value == pytest.approx(0)


def test_a_transform_that_changes_nothing_is_kept() -> None:
    result = judge(SURE)
    assert (result.kept, result.why, result.images) == (True, "", 200)
    assert result.lost == result.log_loss == result.accuracy == Difference(0, 0, 0)


def test_the_share_of_images_that_turn_into_another_class_is_what_is_lost() -> None:
    result = judge(turned(0.3))
    assert not result.kept
    assert result.lost is not None
    # a turned image has 1 / (e^5 + 3) = 0.007 instead of 0.980: more than all that is known, 0.730
    assert result.lost.value == pytest.approx(0.3 * (np.exp(5) - 1) / (np.exp(5) + 3) / KNOWLEDGE.known.value)
    assert result.why == "40 %, 32 to 48 %, of what the head knows is lost"
    assert result.accuracy is not None
    assert result.accuracy.value == pytest.approx(-0.3)
    assert result.log_loss is not None
    assert result.log_loss.value == pytest.approx(0.3 * 5)


def test_few_turned_images_are_withstood() -> None:
    assert judge(turned(0.02)).kept
    assert not judge(turned(0.1)).kept


def test_what_few_images_leave_open_is_not_used_yet() -> None:
    few = np.arange(0, 200, 5)  # 2 of these 40 are turned
    logits = SURE[few].copy()
    logits[[0, 10]] = np.roll(logits[[0, 10]], 1, axis=1)
    result = judge(logits, few)
    assert (result.kept, result.is_open, result.images) == (False, True, 40)
    assert not judge(turned(0.3)).is_open  # nothing is left open
    assert not judge(SURE).is_open


def test_a_single_class_may_not_be_lost() -> None:
    names = [f"class {number}" for number in range(40)]
    labels = np.repeat(np.arange(40), 10)
    logits = 8.0 * np.eye(40)[labels]
    knowledge = HeadKnowledge.of(logits, labels, np.full(40, 1 / 40))
    spoiled = logits.copy()
    spoiled[labels == 7] = 8.0 * np.eye(40)[8]
    result = knowledge.judge("mirror", spoiled, np.arange(400), names)
    assert result.lost is not None
    assert result.lost.high < 0.1  # of all
    assert not result.kept
    assert result.why.startswith("of class class 7 10")
    assert not result.is_open


def test_a_better_prediction_is_no_loss() -> None:
    result = judge(2 * SURE)
    assert result.kept
    assert result.lost is not None
    assert result.lost.value < 0


def test_all_that_is_used_together_loses_less_than_a_tenth() -> None:
    def row(name: str, lost: float) -> CandidateResult:
        return CandidateResult(name, kept=True, images=128, lost=Difference(lost, lost, lost))

    chances = {"crop": 1.0, "mirror": 0.5, "rotate": 0.5, "blur": 0.5}
    rows = [row("crop", 0.056), row("mirror", 0.04), row("rotate", 0.08), row("blur", -0.02)]
    assert [one.name for one in within_margin(rows, chances) if one.kept] == ["mirror", "rotate", "blur"]
    assert within_margin(rows[1:], chances) == tuple(rows[1:])
    unused = CandidateResult("color", kept=False, why="the images are gray")
    assert within_margin([unused], {}) == (unused,)


def test_a_choice_goes_through_json() -> None:
    rows = judge(SURE), judge(turned(0.3)), CandidateResult("color", kept=False, why="the images are gray")
    choice = PolicyChoice(rows, seconds=3.5)
    assert PolicyChoice.from_json(json.loads(json.dumps(choice.to_json()))) == choice
    assert choice.kept == ("turn",)
    nothing = PolicyChoice.nothing(["mirror", "crop"], "so it is")
    assert PolicyChoice.from_json(json.loads(json.dumps(nothing.to_json()))) == nothing
    assert (nothing.kept, nothing.sentence()) == ((), "none, as so it is")
