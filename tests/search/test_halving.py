"""Which candidates stay: the better half, without those that are clearly worse."""

import numpy as np

from graftline.evaluation.head_score import HeadScore
from graftline.search.halving import contenders, judge, next_images


def score(more: float, spread: float = 0.1) -> HeadScore:
    """Return a score of 400 images whose losses are so much higher than those of ``score(0)``, with a spread."""
    hard = np.random.default_rng(0).exponential(1.0, 400)
    own = np.random.default_rng(int(1000 * more)).normal(0, spread, 400)
    return HeadScore(hard + more + own - own.mean(), np.ones(400), 1.0)


def test_half_of_equals_stay_and_the_best_comes_first() -> None:
    verdicts = judge({"c": score(0.002), "a": score(0.0), "d": score(0.003), "b": score(0.001), "e": score(0.004)})
    assert [verdict.name for verdict in verdicts] == ["a", "b", "c", "d", "e"]
    assert contenders(verdicts) == ["a", "b", "c"]
    assert not any(verdict.is_clearly_worse for verdict in verdicts)
    assert verdicts[0].more_log_loss.value == 0


def test_what_is_clearly_worse_goes_though_there_is_room() -> None:
    verdicts = judge({"a": score(0.0), "b": score(0.1), "c": score(0.2)})
    assert contenders(verdicts) == ["a"]
    assert [verdict.is_clearly_worse for verdict in verdicts] == [False, True, True]


def test_one_candidate_stays() -> None:
    assert contenders(judge({"a": score(0.0)})) == ["a"]


def test_rounds_end_with_all_images_or_ten_thousand() -> None:
    rounds, images = [500], next_images(500, 60_000)
    while images is not None:
        rounds.append(images)
        images = next_images(images, 60_000)
    assert rounds == [500, 1000, 2000, 4000, 8000, 10_000]
