"""The picture of a search: score against time spent, what was tried when, and what became of the winner."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.stats import binomtest

from graftline.report.names import short
from graftline.report.style import CATEGORIES, INK, MUTED, VERMILLION, new_figure, styled
from graftline.search.candidates import Candidate
from graftline.search.history import HEAD, WHOLE, ScoredCandidate, SearchHistory
from graftline.search.ledger import Span

WIDTH, HEIGHT = 9.6, 6.2  # inches
PANELS = (4.6, 1.0)  # heights of scores and time, relative to each other
LEAST_SIZE, LARGEST_SIZE = 22.0, 120.0  # of points, in square points, by the number of images
COLORS = tuple(color for color in CATEGORIES if color != VERMILLION)  # of networks; that one is the winner's
LINE = 118  # characters of the sentence below


@dataclass(frozen=True)
class Picture:
    """What is drawn of a search.

    Attributes:
        history: what was tried.
        chosen: the winner.
        spans: what was done when, in seconds since the search began.
        budget: seconds that there were.
        validation: the winner's metrics on the validation split.
        num_validation: how many images that has.
        curve: of the winner's training, (seconds since the search began, accuracy on the validation split) per epoch.
        outlook: what more time would likely bring, in a sentence.
    """

    history: SearchHistory
    chosen: Candidate
    spans: Sequence[Span]
    budget: float
    validation: Mapping[str, float]
    num_validation: int
    curve: Sequence[tuple[float, float]]
    outlook: str


@styled()
def search_figure(picture: Picture) -> Figure:
    """Draw the out-of-fold accuracy of each candidate at the time it was known, and the winner's in the end."""
    accuracy = picture.validation["val/accuracy"]
    tried = len({one.candidate.name for one in picture.history.scored})
    compared = f"best of {tried} candidates" if tried > 1 else "the plain answer"
    figure = new_figure(
        WIDTH,
        HEIGHT,
        f"{short(picture.chosen.name, 40)}, {compared}: {100 * accuracy:.1f} % right on validation images",
        _subtitle(picture.history.scored),
    )
    scores, time = figure.subplots(2, sharex=True, gridspec_kw={"height_ratios": PANELS})
    colors = _colors(picture)
    _draw_scores(scores, picture, colors)
    _draw_winner(scores, picture)
    _draw_time(time, picture, colors)
    scores.set_ylabel("accuracy")
    scores.yaxis.set_major_formatter(PercentFormatter(1.0))
    scores.yaxis.set_major_locator(MaxNLocator(6))
    scores.margins(y=0.12)
    scores.xaxis.set_major_locator(MaxNLocator(10))
    time.set_xlabel("minutes\n" + "\n".join(textwrap.wrap(picture.outlook, LINE)), color=MUTED)
    end = max([picture.budget, *(span.end for span in picture.spans)]) / 60
    time.set_xlim(-0.01 * end, 1.02 * end)
    return figure


def _subtitle(scored: Sequence[ScoredCandidate]) -> str:
    heads = [one.images for one in scored if one.depth == HEAD]
    if not heads:
        return "nothing was compared"
    few, many = f"{min(heads):,}", f"{max(heads):,}"
    number = few if few == many else f"{few} (small) to {many} (large)"
    squares = "; squares: trained as a whole" if len(heads) < len(scored) else ""
    return f"circles: heads on {number} training images, each scored by a fit without it{squares}"


def _colors(picture: Picture) -> dict[str, str]:
    """Return the color of each network."""
    networks = dict.fromkeys(one.network for one in picture.history.candidates)
    return {network: COLORS[number % len(COLORS)] for number, network in enumerate(networks)}


def _draw_scores(axes: Axes, picture: Picture, colors: Mapping[str, str]) -> None:
    """Draw a point for each score, and join those of a candidate."""
    scored = picture.history.scored
    most = max((one.images for one in scored if one.depth == HEAD), default=1)
    named: set[str] = set()
    for candidate in picture.history.candidates:
        points = [one for one in scored if one.candidate is candidate]
        if not points:
            continue
        is_chosen = candidate is picture.chosen
        color = VERMILLION if is_chosen else colors[candidate.network]
        label = candidate.name + ", chosen" if is_chosen else candidate.network
        axes.plot(*_places(points), color=color, linewidth=1.6 if is_chosen else 0.9, alpha=0.55, zorder=2)
        for depth, marker in ((HEAD, "o"), (WHOLE, "s")):
            some = [one for one in points if one.depth == depth]
            axes.scatter(
                *_places(some),
                s=[_size(one, most) for one in some],
                marker=marker,
                color=color,
                edgecolor="white",
                linewidth=0.6,
                zorder=4 if is_chosen else 3,
                label=label if depth == HEAD and label not in named else None,
            )
        named.add(label)
        _name_point(axes, points[-1], color)
    if named:
        axes.legend(loc="lower right", labelcolor=INK)


def _places(points: Sequence[ScoredCandidate]) -> tuple[list[float], list[float]]:
    """Return the minutes and accuracies of some points."""
    return [one.at / 60 for one in points], [one.score.accuracy for one in points]


def _size(one: ScoredCandidate, most: int) -> float:
    return LEAST_SIZE + (LARGEST_SIZE - LEAST_SIZE) * math.sqrt(min(1.0, one.images / most))


def _name_point(axes: Axes, one: ScoredCandidate, color: str) -> None:
    axes.annotate(
        str(one.candidate.side),
        (one.at / 60, one.score.accuracy),
        (0, -6),
        textcoords="offset points",
        ha="center",
        va="top",
        size=7.5,
        color=color,
    )


def _draw_winner(axes: Axes, picture: Picture) -> None:
    """Draw the winner's accuracy on the validation split, with its interval, where its training ended."""
    accuracy, count = picture.validation["val/accuracy"], picture.num_validation
    test = binomtest(min(count, round(accuracy * count)), count).proportion_ci(method="wilson")
    end = picture.spans[-1].end / 60
    if picture.curve:
        places, values = zip(*picture.curve, strict=True)
        axes.plot(
            [at / 60 for at in places], values, color=VERMILLION, linewidth=1.6, marker=".", markersize=4, zorder=3
        )
    axes.errorbar(
        end,
        accuracy,
        [[max(0.0, accuracy - test.low)], [max(0.0, test.high - accuracy)]],
        fmt="D",
        color=VERMILLION,
        markersize=8,
        elinewidth=2.0,
        zorder=5,
    )
    axes.annotate(
        f"trained: {100 * accuracy:.1f} % of {count:,} validation images",
        (end, test.high),
        (4, 5),
        textcoords="offset points",
        ha="right",
        va="bottom",
        size=9,
        weight="bold",
        color=VERMILLION,
    )


def _draw_time(axes: Axes, picture: Picture, colors: Mapping[str, str]) -> None:
    """Draw what was done when as bars in one row, and where the time ends."""
    by_name = {one.name: one for one in picture.history.candidates}
    last = picture.spans[-1]
    for span in picture.spans:
        candidate = by_name.get(span.what)
        color = MUTED if candidate is None else colors[candidate.network]
        if span is last or candidate is picture.chosen:
            color = VERMILLION
        start, end = span.start / 60, span.end / 60
        axes.barh(0, end - start, 0.7, start, color=color, alpha=0.85, edgecolor="white", linewidth=0.5)
        if candidate is None:
            left, size = (start, 0.42), 8.0
            axes.annotate(span.what, left, (1, 0), textcoords="offset points", va="bottom", size=size, color=color)
    axes.axvline(picture.budget / 60, color=INK, linewidth=1.2)
    axes.set_ylim(-0.5, 0.95)
    axes.set_yticks([0], ["time"])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
