"""The picture of where crops lie on an image, found by cutting an image whose colors say where each pixel was.

Letters: H, W size of an image in px, h, w size of the network's input in px.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from graftline.augment.crops import CROP_SETS
from graftline.augment.preprocess import Preprocessing
from graftline.report.grid_tables import crops_in_words
from graftline.report.style import BLUE, MUTED, VERMILLION, new_figure, styled

PANEL = 2.9  # inches
MOST_COLUMNS = 4
LINE = 40  # characters below a panel

Box = tuple[float, float, float, float]  # left, top, right, bottom, shares of the image's width and height


@styled()
def crops_figure(image: np.ndarray, preprocessing: Preprocessing, names: Sequence[str]) -> Figure:
    """Draw the crops of each set on an image, the center in another color.

    Args:
        image: (H, W, 3) uint8.
        preprocessing: the network's; it sees one channel or three.
        names: of the sets.
    """
    columns = min(MOST_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    height, width = image.shape[:2]
    below = [_below(name) for name in names]
    text = 0.5 + 0.14 * max(lines.count("\n") + 1 for lines in below)  # above and below a panel
    panel = PANEL * float(np.clip(height / width, 0.4, 2.0)) + text
    figure = new_figure(
        max(7.6, PANEL * columns),  # as wide as the line above
        1.0 + panel * rows,
        "Where the crops lie",
        "Orange: the one crop of training and serving. Blue: the others, mirrored ones on their originals.",
    )
    for axes, name, lines in zip(figure.subplots(rows, columns, squeeze=False).flat, names, below, strict=False):
        axes.imshow(image, alpha=0.55)
        for box in boxes(image, preprocessing, name):
            _draw(axes, box, width, height, BLUE, 0.9)
        _draw(axes, boxes(image, preprocessing, "1")[0], width, height, VERMILLION, 2.2)
        axes.set_title(crops_in_words(name), fontsize=10.5, fontweight="bold")
        axes.set_xlabel(lines, fontsize=8.5, color=MUTED)
        axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        axes.grid(visible=False)
    for axes in figure.axes[len(names) :]:
        axes.set_axis_off()
    return figure


def _below(name: str) -> str:
    """Return what stands below a panel: where the crops are from, and but for a single one, their cost and harm."""
    crops = CROP_SETS[name]
    texts = [crops.where] if crops.count == 1 else [crops.where, f"{crops.count} passes; harm {crops.wrong}"]
    return "\n".join(textwrap.fill(text, LINE) for text in texts)


def boxes(image: np.ndarray, preprocessing: Preprocessing, name: str) -> list[Box]:
    """Return where the crops of a set lie, each place once.

    The colors of an image of the same size run from 0 to 255, red from left to right and green from top to bottom, so
    that those of a crop tell where it comes from, to a 255th.
    """
    height, width = image.shape[:2]
    places = np.zeros((height, width, 3), dtype=np.uint8)
    places[..., 0] = np.linspace(0, 255, width).round()
    places[..., 1] = np.linspace(0, 255, height).round()[:, None]
    geometry = replace(preprocessing, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    found = []
    for crop in CROP_SETS[name].cut(places, geometry):
        across, down = crop[..., 0] / 255, crop[..., 1] / 255
        found.append((float(across.min()), float(down.min()), float(across.max()), float(down.max())))
    return list(dict.fromkeys(found))


def _draw(axes: Axes, box: Box, width: int, height: int, color: str, line: float) -> None:
    left, top, right, bottom = box
    corner, size = (left * width - 0.5, top * height - 0.5), ((right - left) * width, (bottom - top) * height)
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=line))
