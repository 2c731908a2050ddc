"""The picture of what a promotion costs: images that the champion has right and the challenger wrong."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from graftline.data.decode import decode_rgb
from graftline.data.decoding import Decoding
from graftline.report.names import plain, short
from graftline.report.style import INK, MUTED, VERMILLION, new_figure, styled

COLUMNS, MOST = 6, 18  # pictures in a row, and in all
WIDTH, SIDE, HEADING, FRAME = 10.8, 1.6, 0.62, 0.95  # inches: the figure, a picture, its words, title and margins
PIXELS = 320  # of a picture's longer side
MOST_LETTERS = 24


@styled()
def flips_figure(flips: pd.DataFrame, num_images: int, title: str, decoding: Decoding) -> Figure:
    """Draw the images that turn from right to wrong, the challenger's surest answers first.

    Args:
        flips: as `graftline.evaluation.gate.GateResult` has them, at least one.
        num_images: that were compared.
        title: what was compared with what.
        decoding: how files become pixels.
    """
    shown = flips.head(MOST)
    rows = math.ceil(len(shown) / COLUMNS)
    number = "1 image turns" if len(flips) == 1 else f"{len(flips):,} images turn"
    first = f", the first {len(shown)} by how sure the challenger is" if len(shown) < len(flips) else ""
    subtitle = f"of {num_images:,} test images; {title}{first}"
    height = FRAME + rows * (SIDE + HEADING)
    figure = new_figure(WIDTH, height, f"{number} from right to wrong", subtitle)
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, flip in zip(grid.flat, shown.itertuples(index=False), strict=False):
        axes.imshow(_small(str(flip.path), decoding))
        label, answer = (plain(short(str(name), MOST_LETTERS)) for name in (flip.label, flip.challenger))
        axes.set_title(f"{answer} {100 * float(str(flip.probability)):.0f} %", size=9, color=VERMILLION, pad=14)
        axes.annotate(
            f"is {label}", (0.5, 1), (0, 4), "axes fraction", "offset points", ha="center", size=8.5, color=INK
        )
        name = short(Path(str(flip.path)).name, MOST_LETTERS)
        axes.annotate(name, (0.5, 0), (0, -10), "axes fraction", "offset points", ha="center", size=7.5, color=MUTED)
    return figure


def _small(path: str, decoding: Decoding) -> np.ndarray:
    picture = Image.fromarray(decode_rgb(path, decoding))
    picture.thumbnail((PIXELS, PIXELS))
    return np.asarray(picture)
