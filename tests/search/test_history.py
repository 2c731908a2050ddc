"""Scores in memory and on disk: which candidate they speak for, and that they are found again."""

from pathlib import Path

import numpy as np
import pytest

from graftline.backbones.backbone import Backbone
from graftline.search.candidates import Candidate
from graftline.search.deeper import choose, finalists
from graftline.search.halving import judge
from graftline.search.head_score import HeadScore
from graftline.search.history import HEAD, WHOLE, Depth, ScoredCandidate, ScoreFiles, SearchHistory

A, B, C = (Candidate(Backbone("test_resnet"), side, 1.0, 0) for side in (64, 96, 128))


def scored(candidate: Candidate, loss: float, images: int = 500, depth: Depth = HEAD) -> ScoredCandidate:
    own = np.random.default_rng(candidate.side).normal(0, 0.1, 200)
    losses = np.random.default_rng(images).exponential(1.0, 200) + loss + own - own.mean()
    return ScoredCandidate(candidate, images, HeadScore(losses, np.ones(200), 0.3), 2.0, 10.0, depth)


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
    history.scored[-1] = scored(B, -1.5, 900, WHOLE)
    assert choose(history) is B


def test_a_score_is_found_again(tmp_path: Path) -> None:
    files, one = ScoreFiles(tmp_path / "new" / "scores", "version 1"), scored(A, 0.5)
    files.save(one)
    again = files.load(A, HEAD, 500, at=3.0)
    assert again is not None
    np.testing.assert_array_equal(again.score.losses, one.score.losses)
    assert (again.candidate, again.seconds, again.at, again.score.strength) == (A, 2.0, 3.0, 0.3)
    assert again.images == 500
    assert files.load(A, HEAD, 1000, 0.0) is None
    assert files.load(A, WHOLE, 500, 0.0) is None
    assert files.load(B, HEAD, 500, 0.0) is None
    other = ScoreFiles(tmp_path / "other", "version 2")
    assert other.take_over(tmp_path / "new" / "scores") == 1
    assert other.load(A, HEAD, 500, 0.0) is None  # of other images
    for file in files.directory.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert files.load(A, HEAD, 500, 0.0) is None
