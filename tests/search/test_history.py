"""Scores in memory and on disk: which candidate they speak for, and that they are found again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graftline.backbones.backbone import Backbone
from graftline.evaluation.head_score import HeadScore
from graftline.search.candidates import Candidate
from graftline.search.deeper import choose, finalists, is_chosen_as_whole
from graftline.search.halving import judge
from graftline.search.history import HEAD, WHOLE, Depth, ScoredCandidate, ScoreFiles, SearchHistory

A, B, C = (Candidate(Backbone("test_resnet"), side, 1.0, 0) for side in (64, 96, 128))


def scored(candidate: Candidate, loss: float, images: int = 500, depth: Depth = HEAD) -> ScoredCandidate:
    number = images if depth == HEAD else 200
    own = np.random.default_rng(candidate.side).normal(0, 0.1, number)
    losses = np.random.default_rng(number).exponential(1.0, number) + loss + own - own.mean()
    return ScoredCandidate(candidate, images, HeadScore(losses, np.ones(number), 0.3), 2.0, 10.0, depth, 25.0)


def test_the_best_is_that_of_the_largest_round() -> None:
    history = SearchHistory([A, B, C])
    assert history.best_by_head() is None
    history.scored = [scored(A, 0.1), scored(B, 0.2), scored(C, 0.3), scored(A, 0.2, 1000), scored(B, 0.1, 1000)]
    assert history.best_by_head() is B
    assert choose(history) is B
    assert history.seconds(A.name) == 4.0
    difference = history.difference(C.name, B.name)
    assert difference is not None
    assert difference.value == pytest.approx(0.1)  # on the 500 images that both were scored on
    assert history.difference(C.name, C.name) is not None


def test_trained_as_a_whole_another_one_must_be_clearly_better() -> None:
    history = SearchHistory([A, B], [scored(A, 0.1), scored(B, 0.11)])
    history.verdicts = judge({one.candidate.name: one.score for one in history.scored})
    assert finalists(history) == [A, B]
    history.scored += [scored(A, 0.300, 900, WHOLE), scored(B, 0.299, 700, WHOLE)]
    assert choose(history) is A
    assert not is_chosen_as_whole(history, A)
    history.scored[-1] = scored(B, -1.5, 900, WHOLE)
    assert choose(history) is B
    assert is_chosen_as_whole(history, B)


@pytest.mark.parametrize(("loss", "as_a_whole"), [(-0.5, True), (0.09, False), (0.5, False)])
def test_the_best_by_its_head_may_be_better_as_a_whole_too(loss: float, *, as_a_whole: bool) -> None:
    """Its depth needs no trial, then."""
    history = SearchHistory([A, B], [scored(A, 0.1), scored(B, 0.11), scored(A, loss, 900, WHOLE)])
    assert choose(history) is A
    assert is_chosen_as_whole(history, A) is as_a_whole


def test_no_training_as_a_whole_is_chosen_that_a_head_beats() -> None:
    history = SearchHistory([A, B], [scored(A, 0.1), scored(B, 0.11)])
    history.scored += [scored(A, 3.0, 900, WHOLE), scored(B, 1.0, 700, WHOLE)]
    assert choose(history) is A
    assert not is_chosen_as_whole(SearchHistory([A, B]), A)  # nothing was scored


def test_the_cheapest_is_trained_however_good_its_head_is() -> None:
    cheap = replace(C, macs=0.1)
    history = SearchHistory([A, B, cheap], [scored(A, 0.1), scored(B, 0.11), scored(cheap, 0.9)])
    history.verdicts = judge({one.candidate.name: one.score for one in history.scored})
    assert history.verdicts[-1].is_clearly_worse
    assert finalists(history) == [A, B, cheap]
    history.scored.append(scored(cheap, 0.0, 900, WHOLE))  # there was no time for the others
    assert choose(history) is A  # it is better than the head of the best, but not clearly
    history.scored[-1] = scored(cheap, -1.5, 900, WHOLE)
    assert choose(history) is cheap


def test_without_a_network_that_cannot_be_taken_the_others_are_judged_anew() -> None:
    """Two that are clearly worse than the best, but not than each other, are both trained as a whole without it."""
    best, good, close, cheap = (
        Candidate(Backbone(name), side, macs, 0)
        for name, side, macs in (
            ("resnet18", 64, 2.0),
            ("test_resnet", 96, 1.0),
            ("test_efficientnet", 128, 1.0),
            ("resnet10t", 160, 0.1),
        )
    )
    history = SearchHistory([best, good, close, cheap])
    history.scored = [scored(one, loss) for one, loss in ((best, 0.1), (good, 0.5), (close, 0.501), (cheap, 0.9))]
    history.verdicts = judge({one.candidate.name: one.score for one in history.scored})
    history.outcomes = {one.name: "clearly worse on 500 images" for one in (good, close, cheap)}
    assert finalists(history) == [best, cheap]
    history.scored.append(scored(best, 0.1, 1000))
    history.leave_out("resnet18", "it cannot be saved")
    assert history.best_by_head() is good
    assert finalists(history) == [good, close, cheap]
    assert history.outcomes.keys() == {best.name, cheap.name}
    history.leave_out("resnet10t", "nor can it")
    assert finalists(history) == [good, close]


def test_a_score_is_found_again(tmp_path: Path) -> None:
    files, one = ScoreFiles(tmp_path / "new" / "scores", "version 1"), scored(A, 0.5)
    files.save(one)
    again = files.load(A, HEAD, 500, at=3.0)
    assert again is not None
    np.testing.assert_array_equal(again.score.losses, one.score.losses)
    assert (again.candidate, again.seconds, again.at, again.score.strength) == (A, 2.0, 3.0, 0.3)
    assert again.images == 500
    assert files.load(A, HEAD, 1000, 0.0) is None
    assert again.allowed == 25.0
    assert files.load(A, WHOLE, 500, 0.0) is None
    cropped = replace(A, backbone=replace(A.backbone, crop_pct=1.0))
    assert files.load(cropped, HEAD, 500, 0.0) is None
    assert files.load(replace(A, backbone=replace(A.backbone, weights_dir="moved")), HEAD, 500, 0.0) is not None
    ScoreFiles(files.directory, "version 1", "recipe 1").save(scored(A, 0.5, depth=WHOLE))
    assert ScoreFiles(files.directory, "version 1", "recipe 1").load(A, WHOLE, 0, 0.0) is not None
    assert ScoreFiles(files.directory, "version 1", "recipe 2").load(A, WHOLE, 0, 0.0) is None
    assert files.load(B, HEAD, 500, 0.0) is None
    other = ScoreFiles(tmp_path / "other", "version 2")
    assert other.take_over(files.directory) == 0
    assert other.load(A, HEAD, 500, 0.0) is None  # of other images
    same = ScoreFiles(tmp_path / "same", "version 1", "recipe 2")
    assert same.take_over(files.directory) == 1, "the head, not the network of another recipe"
    assert same.load(A, HEAD, 500, 0.0) is not None
    assert ScoreFiles(tmp_path / "like", "version 1", "recipe 1").take_over(files.directory) == 2
    for file in files.directory.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert files.load(A, HEAD, 500, 0.0) is None
