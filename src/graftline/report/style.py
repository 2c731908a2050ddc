"""The one look of all figures: light paper, one typeface, a palette that color-blind people can tell apart."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from graftline.files import atomic_file
from graftline.report.names import TYPEFACE, font_families, plain

PAPER, INK, MUTED, GRID = "#ffffff", "#1c2331", "#5d6675", "#e4e7ec"
# Okabe and Ito 2008, "Color Universal Design"; the yellow is left out, as it vanishes on white
BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
CATEGORIES = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE)

DPI = 160  # twice a screen's 80: sharp on a phone too
COMPRESSION = 1  # of 9: a sheet of photographs takes a third of the time of level 6, and a quarter more bytes
TITLE_INCHES, MARGIN_INCHES = 0.8, 0.16

RC: dict[Any, Any] = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "font.family": TYPEFACE,
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#aab1bd",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": "#aab1bd",
    "ytick.color": "#aab1bd",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.facecolor": PAPER,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@contextmanager
def styled() -> Iterator[None]:
    """Give the figures made inside the block, or function, the style; nothing of it stays behind."""
    with matplotlib.rc_context(RC):
        yield


def new_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """Return an empty figure with its title and a quiet second line at the top left.

    Args:
        width: in inches.
        height: in inches, with the title.
        title: what the figure says, at best with its number.
        subtitle: how to read it, one line.
    """
    side, bottom = 0.08 / width, 0.08 / height
    frame = (side, bottom, 1 - 2 * side, 1 - TITLE_INCHES / height - bottom)
    layout = ConstrainedLayoutEngine(rect=frame, w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(width, height), layout=layout)
    left, top = MARGIN_INCHES / width, 1 - MARGIN_INCHES / height
    figure.text(left, top, plain(title), size=13, weight="bold", va="top")
    figure.text(left, top - 0.28 / height, plain(subtitle), size=9.5, color=MUTED, va="top")
    return figure


def png(figure: Figure) -> bytes:
    """Return ``figure`` as a PNG file's bytes."""
    content = io.BytesIO()
    for text in figure.findobj(Text):
        families = font_families(text.get_text())
        if len(families) > 1:
            text.set(fontfamily=families, fontweight="normal")  # few of them have a bold face
    with styled():
        figure.savefig(content, dpi=DPI, format="png", pil_kwargs={"compress_level": COMPRESSION})
    return content.getvalue()


def save(figure: Figure, path: Path) -> Path:
    """Write ``figure`` as PNG, atomically, and return its path."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(png(figure))
    return path
