"""The picture of what networks cost: multiply-adds, milliseconds and parameters, a bubble for each network."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from graftline.backbones.cost import NetworkCost
from graftline.backbones.cost.timing import ENGINES, TimedEngine
from graftline.report.cost_tables import short_number
from graftline.report.names import short
from graftline.report.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    VERMILLION,
    new_figure,
    styled,
)

WIDTH, HEIGHT = 11.0, 7.6  # inches
FAMILY_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
LARGEST_BUBBLE = 2600.0  # points², of the network with the most parameters
FAR = 20.0  # a network that has so many times fewer multiply-adds than the next is written, not drawn
LABEL_SIZE = 9.0  # points
GUIDE = "#c3c9d3"
HALO = [withStroke(linewidth=2.5, foreground=PAPER)]  # keeps a name readable on a line
RATES = (1, 10, 100, 1000)  # GMAC/s of the guiding lines
GAP = 3.0  # pixels between a bubble and its name
SEARCH: dict[str, Any] = {  # for places of names
    "iter_lim": 1000,  # a number, not a time, so that the picture is the same again
    "avoid_self": False,
    "force_text": (0.3, 0.5),  # three times the default: no name may hide another
    "min_arrow_len": 30,
    "arrowprops": {"arrowstyle": "-", "color": MUTED, "lw": 0.7},
}


@dataclass(frozen=True)
class _Bubble:
    name: str
    family: str
    gmacs: float
    milliseconds: float  # per image
    parameters: int


@styled()
def cost_figure(networks: Sequence[NetworkCost], batch_size: int) -> Figure | None:
    """Draw a bubble for each network: multiply-adds to the right, ms per image upwards, its area the parameters.

    Time is that of ONNX Runtime, or of torch if ONNX Runtime ran none of them. Networks of one family have one color
    and are joined by a line. Dashed lines join what the machine would compute at the same rate.

    Args:
        networks: counted and measured.
        batch_size: the time of which is drawn.

    Returns:
        The figure, or None if fewer than two networks were measured.
    """
    engine, bubbles = _bubbles(networks, batch_size)
    if len(bubbles) < 2:
        return None
    bubbles.sort(key=lambda bubble: bubble.gmacs)
    is_far = len(bubbles) > 2 and bubbles[1].gmacs > FAR * bubbles[0].gmacs
    far, drawn = (bubbles[:1], bubbles[1:]) if is_far else ([], bubbles)
    images = "one image" if batch_size == 1 else f"{batch_size} images"
    figure = new_figure(
        WIDTH,
        HEIGHT,
        f"What {len(bubbles)} networks cost",
        f"Forward pass of {images} with {ENGINES[engine]} on this machine. Area: parameters. "
        "Dashed: the same rate of multiply-adds.",
    )
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="multiply-adds per image, in 10⁹", ylabel="milliseconds per image")
    _set_limits(axes, drawn, footroom=1.5 if far else 1.0)
    _draw_rates(axes)
    areas = _draw_bubbles(axes, drawn)
    _draw_legend(axes, max(bubble.parameters for bubble in drawn))
    figure.draw_without_rendering()  # the layout, so that labels know where they are
    _label(axes, drawn, areas)
    for bubble in far:
        text = (
            f"←  {bubble.name}: {short_number(1e9 * bubble.gmacs)} multiply-adds, {bubble.milliseconds:.2g} ms, "
            f"{bubble.parameters:,} parameters"
        )
        axes.annotate(text, (0, 0), (8, 8), "axes fraction", "offset points", color=MUTED, size=LABEL_SIZE)
    drawn_names = {bubble.name for bubble in bubbles}
    if left_out := [network.name for network in networks if network.name not in drawn_names]:
        axes.annotate(
            f"not timed: {short(', '.join(left_out), 60)}",
            (1, 0),
            (-8, 8),
            "axes fraction",
            "offset points",
            color=MUTED,
            size=LABEL_SIZE,
            ha="right",
        )
    return figure


def _bubbles(networks: Sequence[NetworkCost], batch_size: int) -> tuple[TimedEngine, list[_Bubble]]:
    """Return the engine whose times are drawn, and the networks that it ran."""
    for engine in ENGINES:
        found = [
            _Bubble(network.name, _family(network.name), network.cost.macs / 1e9, time, network.cost.parameters)
            for network in networks
            if (time := network.milliseconds(engine, batch_size)) is not None and network.cost.macs > 0
        ]
        if found:
            break
    return engine, found


def _family(name: str) -> str:
    """Return what networks of one family have in common.

    >>> _family("efficientnet_b0"), _family("tf_efficientnet_lite0"), _family("resnet50"), _family("mobilenetv1_100")
    ('efficientnet_b', 'efficientnet_lite', 'resnet', 'mobilenetv')
    """
    match = re.match(r"(?:tf_)?([a-z]+(?:_[a-z]+)?)", name)
    return match.group(1) if match else name


def _set_limits(axes: Axes, bubbles: Sequence[_Bubble], footroom: float) -> None:
    """Leave room around the bubbles, and below them what ``footroom`` divides the lower limit by."""
    for set_limits, values, foot in (
        (axes.set_xlim, [bubble.gmacs for bubble in bubbles], 1.0),
        (axes.set_ylim, [bubble.milliseconds for bubble in bubbles], footroom),
    ):
        low, high = min(values), max(values)
        room = max(1.6, (high / low) ** 0.09)
        set_limits(low / room / foot, high * room)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_locator(NullLocator())


def _draw_rates(axes: Axes) -> None:
    """Draw where networks lie that are computed at the same rate, and write the rate where the line leaves the axes."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    for rate in RATES:  # ms = 1000 · GMACs / rate
        low, high = max(left, bottom * rate / 1000), min(right, top * rate / 1000)
        if low >= high:
            continue
        axes.plot([low, high], [1000 * low / rate, 1000 * high / rate], color=GUIDE, lw=1.0, ls=(0, (4, 4)), zorder=1)
        at_top = high < right
        axes.annotate(
            f"{rate:,} GMAC/s",
            (high, 1000 * high / rate),
            (-4, 4),
            textcoords="offset points",
            ha="center" if at_top else "right",
            va="bottom",
            color=MUTED,
            size=8,
            annotation_clip=False,
        )


def _draw_bubbles(axes: Axes, bubbles: Sequence[_Bubble]) -> list[float]:
    """Draw families, the largest bubbles first; returns the areas in points²."""
    most = max(bubble.parameters for bubble in bubbles)
    areas = [max(12.0, LARGEST_BUBBLE * bubble.parameters / most) for bubble in bubbles]
    families = dict.fromkeys(bubble.family for bubble in bubbles)
    several = [family for family in families if sum(bubble.family == family for bubble in bubbles) > 1]
    colors = dict(zip(several, itertools.cycle(FAMILY_COLORS)))
    for family in several:
        members = [bubble for bubble in bubbles if bubble.family == family]
        xs, ys = [bubble.gmacs for bubble in members], [bubble.milliseconds for bubble in members]
        axes.plot(xs, ys, color=colors[family], linewidth=1.2, alpha=0.5, zorder=2)
    for bubble, area in sorted(zip(bubbles, areas, strict=True), key=lambda pair: -pair[1]):
        color = colors.get(bubble.family, INK)
        axes.scatter(bubble.gmacs, bubble.milliseconds, s=area, color=color, alpha=0.35, linewidth=0, zorder=3)
        axes.scatter(bubble.gmacs, bubble.milliseconds, s=area, color="none", edgecolor=color, linewidth=1.2, zorder=4)
    return areas


def _draw_legend(axes: Axes, most: int) -> None:
    """Show what the areas mean: the largest, and a quarter and a twentieth of it, rounded to one digit."""
    sizes = [float(f"{most * share:.0e}") for share in (1.0, 0.25, 0.05)]
    handles = [
        axes.scatter([], [], s=LARGEST_BUBBLE * size / most, color="none", edgecolor=MUTED, label=f"{size / 1e6:g} M")
        for size in sizes
    ]
    axes.legend(
        handles=handles,
        title="parameters",
        loc="upper left",
        labelspacing=2.9,
        handletextpad=2.0,
        borderpad=1.6,
        frameon=False,
        labelcolor=MUTED,
        alignment="left",
    )


def _label(axes: Axes, bubbles: Sequence[_Bubble], areas: Sequence[float]) -> None:
    """Write each name beside its bubble, where it hides no other name and as little as can be of other bubbles."""
    values = np.array([(bubble.gmacs, bubble.milliseconds) for bubble in bubbles])
    centers = axes.transData.transform(values)  # pixels
    radii = axes.figure.dpi / 72 * np.sqrt(np.array(areas) / math.pi)
    circles = [
        Bbox.from_extents(*(center - radius), *(center + radius)) for center, radius in zip(centers, radii, strict=True)
    ]
    starts = axes.transData.inverted().transform(centers + (radii[:, None] + GAP) * (1, 0))
    texts = [
        axes.text(x, y, short(bubble.name, 28), va="center", size=LABEL_SIZE, zorder=6, path_effects=HALO)
        for bubble, (x, y) in zip(bubbles, starts, strict=True)
    ]
    adjust_text(texts, objects=circles, target_x=values[:, 0], target_y=values[:, 1], ax=axes, **SEARCH)
