"""Draw the preview sheet: what a policy makes of one image, to judge by eye whether the label still holds."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from graftline.augment.draw import Draw
from graftline.augment.policy import Augment, Policy
from graftline.augment.preprocess import Preprocessing

VARIANTS = 12
_INK, _MUTED, _PANEL = "#17202a", "#6b7683", "#f1f3f5"
_GRID = 4  # rows and columns of cells; the original fills the first 2 x 2, the variants the other 12
_CELL, _GAP, _MARGIN, _HEAD = 2.3, 0.44, 0.44, 1.0  # inches; the gap below a cell holds its caption
_MOST_SHOWN = 1000  # px of the original's longer side, roughly: matplotlib makes several copies of what it draws
_LINE = 40  # characters of a caption that fit under a cell


def preview_sheet(image: np.ndarray, policy: Policy, preprocessing: Preprocessing, seed: int) -> Figure:
    """Draw an image and 12 variants of it, each with the names of the transforms that came up.

    Args:
        image: (H, W, 3) uint8.
        policy: what may happen to the image.
        preprocessing: of the network; the variants have its size.
        seed: of the draws.

    Returns:
        A figure that pyplot knows nothing of: save it with ``savefig``.
    """
    height, width = preprocessing.image_size
    sheet = _Sheet(cell_height=_CELL * height / width)
    sheet.title(
        f"Augmentation: {policy.name}",
        f"One image and {VARIANTS} draws of it, {width} \N{MULTIPLICATION SIGN} {height} px as the network sees them. "
        "Would you still give them the same label?",
    )
    step = max(1, max(image.shape[:2]) // _MOST_SHOWN)
    sheet.show(
        image[::step, ::step],
        column=0,
        row=0,
        span=2,
        caption=f"original, {image.shape[1]} \N{MULTIPLICATION SIGN} {image.shape[0]} px",
    )
    augment = Augment(policy, preprocessing, seed)
    cells = [(column, row) for row in range(_GRID) for column in range(_GRID) if column >= 2 or row >= 2]
    for number, (column, row) in enumerate(cells):
        variant, happened = augment.augment(image, Draw(epoch=number, index=0))
        sheet.show(variant, column, row, span=1, caption=_caption(happened))
    return sheet.figure


def _caption(names: list[str]) -> str:
    """Return the names with dots between them, in as many lines as they need.

    >>> _caption(["crop", "mirror"]), _caption([])
    ('crop · mirror', 'unchanged')
    """
    lines: list[str] = []
    for name in names or ["unchanged"]:
        if lines and len(lines[-1]) + len(name) + 3 <= _LINE:
            lines[-1] += f" · {name}"
        else:
            lines.append(name)
    return "\n".join(lines)


class _Sheet:
    """A figure with a title and a grid of pictures with captions, laid out in inches: one Axes, as each takes 10 ms."""

    def __init__(self, cell_height: float) -> None:
        self.cell_height = cell_height
        self.width = 2 * _MARGIN + _GRID * _CELL + (_GRID - 1) * _GAP
        self.height = _HEAD + _GRID * (cell_height + _GAP) + _MARGIN / 2
        self.figure = Figure(figsize=(self.width, self.height), dpi=150, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(0, self.height))
        self.axes.set_axis_off()

    def title(self, title: str, subtitle: str) -> None:
        left = _MARGIN / self.width
        self.figure.text(left, 1 - 0.46 / self.height, title, color=_INK, fontsize=17, fontweight="bold")
        self.figure.text(left, 1 - 0.74 / self.height, subtitle, color=_MUTED, fontsize=9.5)

    def show(self, image: np.ndarray, column: int, row: int, span: int, caption: str) -> None:
        """Put a picture into ``span`` x ``span`` cells, centered if its shape differs, and a caption below."""
        width = span * _CELL + (span - 1) * _GAP
        height = span * self.cell_height + (span - 1) * _GAP
        left = _MARGIN + column * (_CELL + _GAP)
        bottom = self.height - _HEAD - row * (self.cell_height + _GAP) - height
        self.axes.add_patch(Rectangle((left, bottom), width, height, color=_PANEL, linewidth=0, zorder=-1))
        self.axes.annotate(
            caption,
            (left, bottom),
            (0, -5),
            "data",
            "offset points",
            va="top",
            color=_INK,
            fontsize=8.5,
            linespacing=1.3,
        )
        scale = min(width / image.shape[1], height / image.shape[0])  # inches per pixel
        x, y = (width - scale * image.shape[1]) / 2, (height - scale * image.shape[0]) / 2
        picture = AxesImage(
            self.axes, cmap="gray", extent=(left + x, left + width - x, bottom + y, bottom + height - y)
        )
        picture.set_data(image)
        picture.set_clim(0, 255)
        self.axes.add_image(picture)
