"""The picture of a model's history: a lane for each version, a row for each decision, a band where it was champion."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from graftline.report.history_tables import when
from graftline.report.names import plain, short
from graftline.report.style import BLUE, GREEN, GRID, INK, MUTED, ORANGE, PURPLE, VERMILLION, new_figure, styled
from graftline.tracking.ledger import Kind, LedgerLine, reigns

WIDTH, ROW, FRAME = 12.0, 0.4, 1.75  # inches: of the figure, of a decision, of what is around them
LANE, MOST_LANES_WIDTH = 0.42, 3.6  # inches: of a version, of all of them
MOST_ROWS = 40  # the newest decisions
MOST_LETTERS = 92  # of a reason
# shapes beside colors, for who sees no colors
MARKS: dict[Kind, tuple[str, str]] = {
    "promoted": ("o", BLUE),
    "refused": ("X", VERMILLION),
    "forced": ("D", ORANGE),
    "rolled back": ("v", PURPLE),
    "moved by hand": ("s", GREEN),
}


@styled()
def history_figure(model: str, lines: Sequence[LedgerLine]) -> Figure:
    """Draw who was champion when, and why; the newest decisions at the bottom.

    Args:
        model: its name.
        lines: of the ledger, at least one.
    """
    shown = list(lines)[-MOST_ROWS:]
    champion = lines[-1].decision.after
    title = f"{model}: version {champion} is champion" if champion is not None else f"{model} has no champion"
    subtitle = f"{len(lines):,} decisions" + (f", of which the last {len(shown)}" if len(shown) < len(lines) else "")
    figure = new_figure(WIDTH, FRAME + ROW * len(shown), title, f"{subtitle}; the band is the champion")
    axes = figure.subplots()
    versions = _versions(shown)
    lanes = {version: place for place, version in enumerate(versions)}
    _draw_bands(axes, shown, lanes)
    for row, line in enumerate(shown):
        _draw_decision(axes, row, line, lanes)
    axes.set_xticks(range(len(versions)), [str(version) for version in versions])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.annotate(
        "version",
        (-0.75, -0.6),
        (0, 6),
        textcoords="offset points",
        ha="right",
        size=9,
        color=MUTED,
        annotation_clip=False,
    )
    axes.set_yticks(range(len(shown)), [f"{when(line.decision.at)}   {line.number}" for line in shown])
    share = min(MOST_LANES_WIDTH, LANE * max(2, len(versions))) / WIDTH
    axes.set_xlim(-0.6, (len(versions) - 0.4) / (share / 0.86))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _versions(lines: Sequence[LedgerLine]) -> list[int]:
    """Return the versions that lines tell of."""
    found = {number for line in lines for number in (line.decision.version, line.decision.before, line.decision.after)}
    return sorted(number for number in found if number is not None)


def _draw_bands(axes: Axes, shown: Sequence[LedgerLine], lanes: dict[int, int]) -> None:
    """Draw the lanes, and on each the time that its version was champion."""
    for lane in lanes.values():
        axes.vlines(lane, -0.4, len(shown) - 0.6, color=GRID, linewidth=1.2, zorder=1)
    rows = {line.number: row for row, line in enumerate(shown)}
    if (before := shown[0].decision.before) is not None:
        until = next((row for row, line in enumerate(shown) if line.decision.after != before), len(shown) - 1)
        axes.vlines(lanes[before], -0.6, until, color=BLUE, linewidth=7, alpha=0.35, zorder=2)
    for reign in reigns(shown):
        if reign.version is not None:
            end = rows[reign.last.number] if reign.last is not None else len(shown) - 0.5
            axes.vlines(
                lanes[reign.version], rows[reign.first.number], end, color=BLUE, linewidth=7, alpha=0.35, zorder=2
            )


def _draw_decision(axes: Axes, row: int, line: LedgerLine, lanes: dict[int, int]) -> None:
    decision = line.decision
    marker, color = MARKS[decision.kind]
    before, after = decision.before, decision.after
    if before is not None and after is not None and before != after:
        axes.hlines(row, lanes[before], lanes[after], color=color, linewidth=1.6, zorder=3)
    lane = decision.version if decision.version is not None else before
    if lane is not None:
        axes.plot(lanes[lane], row, marker, color=color, markersize=8, zorder=4, markeredgecolor="white")
    place = len(lanes) - 0.2
    what = "" if decision.version is None else f" {decision.version}"
    axes.text(place, row, f"{decision.kind}{what}", color=color, weight="bold", va="center", size=9)
    axes.annotate(
        plain(short(decision.why, MOST_LETTERS)),
        (place, row),
        (112, 0),
        textcoords="offset points",
        va="center",
        size=9,
        color=INK,
    )
