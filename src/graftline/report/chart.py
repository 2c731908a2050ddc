"""Charts that the page draws itself as SVG: they follow light and dark, stay sharp in print and readable on a phone.

What is here places numbers on the drawing; `templates/chart.html.j2` draws. Series differ by dashes and markers too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

LEFT, RIGHT, TOP, BOTTOM = 47.0, 328.0, 8.0, 232.0  # of the plot, in units of the drawing
WIDTH, HEIGHT = 340, 272
MOST_POINTS = 160  # of a line; the plot is less than 300 units wide

Numbers = Sequence[float] | npt.NDArray[np.floating]


@dataclass(frozen=True)
class Axis:
    """An axis of a chart.

    Attributes:
        label: what it shows, with its unit.
        low: where it begins.
        high: where it ends.
        ticks: values that are marked.
        unit: how ticks are written: a share in per cent, or a number.
        is_log: whether equal steps are equal ratios.
    """

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    unit: Literal["%", ""] = ""
    is_log: bool = False

    @classmethod
    def shares(cls, label: str, low: float = 0.0) -> "Axis":
        """Return an axis of shares, from 0 or a higher round number to 1."""
        step = 0.2 if low < 0.5 else 0.1 if low < 0.8 else 0.05 if low < 0.9 else 0.02
        ticks = np.arange(math.floor(low / step + 1e-9) * step, 1 + 1e-9, step)
        return cls(label, float(ticks[0]), 1.0, tuple(np.minimum(ticks, 1.0).tolist()), "%")

    @classmethod
    def around(cls, label: str, values: Numbers, unit: Literal["%", ""] = "") -> "Axis":
        """Return an axis with round ticks that holds all values."""
        low, high = float(np.min(values)), float(np.max(values))
        span = max(high - low, 1e-3 * max(1.0, abs(high)))
        step = min((one for one in _steps(span) if span / one <= 5), default=span)
        first = math.floor(low / step)
        ticks = np.arange(first, max(math.ceil(high / step), first + 1) + 1) * step
        return cls(label, float(ticks[0]), float(ticks[-1]), tuple(ticks.tolist()), unit)

    @classmethod
    def ratios(cls, label: str, values: Numbers) -> "Axis":
        """Return a logarithmic axis that holds all values above 0, with ticks at 1, 2 and 5 of each ten."""
        low, high = float(np.min(values)) / 1.25, float(np.max(values)) * 1.25
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        if high / low > 200:
            ticks = [10.0**decade for decade in decades]
        return cls(label, low, high, tuple(tick for tick in ticks if low <= tick <= high), is_log=True)

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 to 1."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def text(self, tick: float) -> str:
        """Write a tick.

        >>> Axis.shares("recall").text(0.2), Axis.around("epoch", [0, 30]).text(10.0)
        ('20', '10')
        """
        return f"{100 * tick:.4g}" if self.unit == "%" else f"{tick:,.4g}"


def _steps(span: float) -> list[float]:
    power = 10.0 ** math.floor(math.log10(span) - 1)
    return [digit * power * ten for ten in (1, 10) for digit in (1, 2, 5)]


@dataclass(frozen=True)
class Series:
    """Values of a chart.

    Attributes:
        label: in the legend; empty for none.
        x: where.
        y: the values.
        style: number of the color, dashes and marker; -1 for quiet gray, as of guessing.
        kind: a line, markers, or bars from zero.
        ends: (n, 2) lower and upper ends of intervals; empty for none.
        names: written beside the markers.
        width: of bars, in the unit of x.
    """

    label: str
    x: Numbers
    y: Numbers
    style: int = 0
    kind: Literal["line", "points", "bars", "area"] = "line"
    ends: Numbers | Sequence[Sequence[float]] = ()
    names: Sequence[str] = ()
    width: float = 0.0


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        heading: what it shows.
        caption: how to read it.
        alt: what it says, for those who cannot see it.
        x: horizontal axis.
        y: vertical axis.
        series: drawn in this order.
        note: in large letters above, such as the area under a curve.
    """

    heading: str
    caption: str
    alt: str
    x: Axis
    y: Axis
    series: Sequence[Series] = field(default_factory=tuple)
    note: str = ""

    def left_of(self, value: float) -> float:
        """Return the horizontal place of a value on the drawing."""
        return round(LEFT + self.x.place(value) * (RIGHT - LEFT), 1)

    def top_of(self, value: float) -> float:
        """Return the vertical place of a value on the drawing."""
        return round(BOTTOM - self.y.place(value) * (BOTTOM - TOP), 1)

    def points(self, series: Series) -> list[tuple[float, float]]:
        """Return the places of a series."""
        return [(self.left_of(x), self.top_of(y)) for x, y in zip(*_thin(series.x, series.y), strict=True)]

    def path(self, series: Series) -> str:
        """Return a line as the points of a polyline."""
        return " ".join(f"{x:g},{y:g}" for x, y in self.points(series))

    def bars(self, series: Series) -> list[tuple[float, float, float, float]]:
        """Return left, top, width and height of each bar."""
        return [
            (left := self.left_of(x), top := self.top_of(y), self.left_of(x + series.width) - left, BOTTOM - top)
            for x, y in zip(series.x, series.y, strict=True)
        ]

    def intervals(self, series: Series) -> list[tuple[float, float, float]]:
        """Return horizontal place, upper and lower end of each interval."""
        return [
            (self.left_of(x), self.top_of(high), self.top_of(low))
            for x, (low, high) in zip(series.x, series.ends, strict=True)
        ]


def _thin(x: Numbers, y: Numbers) -> tuple[list[float], list[float]]:
    """Return as many points as a drawing shows, the first and the last among them."""
    rows = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
    return np.asarray(x, np.float64)[rows].tolist(), np.asarray(y, np.float64)[rows].tolist()
