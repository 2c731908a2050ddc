"""The picture of a search: a point for each score, the winner's in the end, and the time that each took."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer, ErrorbarContainer

from graftline.backbones.backbone import Backbone
from graftline.evaluation.head_score import HeadScore
from graftline.report.search_figure import Picture, search_figure
from graftline.report.style import png
from graftline.search.candidates import Candidate
from graftline.search.history import ScoredCandidate, SearchHistory
from graftline.search.ledger import Span

A, B = (Candidate(Backbone(name), 64, 1.0, 0) for name in ("test_resnet", "test_efficientnet"))


def scored(candidate: Candidate, images: int, accuracy: float, at: float) -> ScoredCandidate:
    hits = (np.arange(images) < accuracy * images).astype(float)
    return ScoredCandidate(candidate, images, HeadScore(1 - hits, hits, 1.0), 10.0, at)


@pytest.fixture
def picture() -> Picture:
    history = SearchHistory([A, B], [scored(A, 100, 0.8, 30), scored(B, 100, 0.85, 60), scored(B, 200, 0.9, 90)])
    spans = [Span("images, networks", 0, 20), Span(A.name, 20, 30), Span(B.name, 30, 90), Span("training", 90, 170)]
    return Picture(
        history,
        B,
        spans,
        180.0,
        {"val/accuracy": 0.95, "val/loss": 0.1},
        400,
        [(120, 0.9), (150, 0.95)],
        "More time: little. " * 12,
    )


def test_it_shows_the_scores_the_winner_and_the_time(picture: Picture) -> None:
    figure = search_figure(picture)
    scores, time = figure.axes
    points = [np.asarray(one.get_offsets()) for one in scores.collections if isinstance(one, PathCollection)]
    np.testing.assert_allclose(np.concatenate(points), [(0.5, 0.8), (1.0, 0.85), (1.5, 0.9)])
    (winner,) = [container for container in scores.containers if isinstance(container, ErrorbarContainer)]
    np.testing.assert_allclose(winner[0].get_xydata(), [(170 / 60, 0.95)])
    bars = [bar for container in time.containers if isinstance(container, BarContainer) for bar in container]
    np.testing.assert_allclose([bar.get_width() * 60 for bar in bars], [20, 10, 60, 80])
    assert figure.texts[0].get_text() == (
        "test_efficientnet 64 px, best of 2 candidates: 95.0 % right on validation images"
    )
    assert png(figure).startswith(b"\x89PNG")


def test_without_scores_it_is_the_plain_answer(picture: Picture) -> None:
    plain = Picture(SearchHistory([A]), A, picture.spans, 180.0, picture.validation, 400, [], "")
    figure = search_figure(plain)
    assert "the plain answer: 95.0 % right" in figure.texts[0].get_text()
    assert png(figure).startswith(b"\x89PNG")
