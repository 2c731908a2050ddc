"""The picture of explanations: each image, where its class was found in it, and the training images most like it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from graftline.bundle.heat import GRAD_CAM, OCCLUSION, Method
from graftline.evaluation.explanation import Explanation
from graftline.report.names import short_names
from graftline.report.style import BLUE, INK, MUTED, VERMILLION, new_figure, styled

PICTURE, ROW, REST = 1.7, 2.28, 1.0  # inches: width of a picture, height of a row, height of what is above
MOST_LETTERS = 18  # of a class name
FEWEST_COLUMNS = 5  # as wide as title and subtitle are
DARKEST = 0.55  # brightness of a place where nothing speaks for the class

HEAT: Colormap = LinearSegmentedColormap.from_list("heat", ["#0b0f1a", "#5a1a00", VERMILLION, "#ffc27a", "#fff6e6"])


BRIGHT_OF = {
    GRAD_CAM: "it speaks for the answer (Grad-CAM)",
    OCCLUSION: "covering it makes the answer less sure (occlusion)",
}
BRIGHT_MIXED = "it speaks for the answer (Grad-CAM; occlusion where marked)"


@styled()
def explanation_figure(explanations: Sequence[Explanation], title: str, class_names: Sequence[str]) -> Figure:
    """Draw a row of pictures for each explanation.

    Args:
        explanations: in the order to show, at least one.
        title: what they are of.
        class_names: of all classes.
    """
    names = dict(zip(class_names, short_names(class_names, MOST_LETTERS), strict=True))
    is_mixed = len(_methods(explanations)) > 1
    near = max(len(one.neighbors) for one in explanations)
    columns = max(2 + near, FEWEST_COLUMNS)
    figure = new_figure(columns * PICTURE + 0.3, REST + ROW * len(explanations), title, _subtitle(explanations))
    cells = figure.subplots(len(explanations), columns, squeeze=False)
    for row, one in zip(cells, explanations, strict=True):
        for axes in row:
            axes.set_axis_off()
        _picture(row[0], one.view)
        if one.label is not None:
            _below(row[0], 0, f"labeled {names[one.label]}", INK)
        _heat(row[1], one, names[one.answer])
        if one.method == OCCLUSION and is_mixed:
            _mark(row[1], OCCLUSION)
        for axes, neighbor in zip(row[2:], one.neighbors, strict=False):
            _picture(axes, neighbor.view)
            _below(axes, 0, names[neighbor.label], _color(neighbor.label, one))
            _below(axes, 1, f"distance {neighbor.distance:.2f}", MUTED)
    heads = ["image", "where it was seen", "the training images most like it" if near > 0 else ""]
    for axes, head in zip(cells[0], heads, strict=False):
        axes.set_title(head, size=9, color=MUTED, loc="left", pad=5)
    return figure


def _subtitle(explanations: Sequence[Explanation]) -> str:
    """Say what is bright and what is colored, in one line."""
    methods = _methods(explanations)
    bright = BRIGHT_MIXED if len(methods) > 1 else BRIGHT_OF[methods.pop()]
    has_labels = any(one.label is not None for one in explanations)
    return f"Bright: {bright}.{' Blue: class of the label. Orange: the answer.' if has_labels else ''}"


def _methods(explanations: Sequence[Explanation]) -> set[Method]:
    return {one.method for one in explanations}


def _picture(axes: Axes, view: np.ndarray) -> None:
    gray = view.shape[2] == 1
    axes.imshow(
        view[..., 0] if gray else view, cmap="gray" if gray else None, vmin=0, vmax=255, interpolation="antialiased"
    )


def _heat(axes: Axes, one: Explanation, answer: str) -> None:
    """Draw an image in gray, dark where nothing speaks for the answer and colored where much does."""
    gray = one.view.mean(axis=2, keepdims=True) / 255  # (H, W, 1)
    heat = one.heat[..., None]
    colors = HEAT(0.2 + 0.75 * gray[..., 0])[..., :3]  # (H, W, 3)
    axes.imshow((1 - heat) * DARKEST * gray + heat * colors, interpolation="antialiased")
    _below(axes, 0, f"{answer}  {_per_cent(one.probability)}", _color(one.answer, one), bold=True)
    if one.heat.max() == 0:
        _below(axes, 1, "no place speaks for it", MUTED)
        return
    _below(axes, 1, f"bright part covered: {_per_cent(one.covered)}", MUTED)
    _below(axes, 2, f"dark part covered: {_per_cent(one.elsewhere)}", MUTED)


def _mark(axes: Axes, text: str) -> None:
    """Write a word into the corner of a picture."""
    axes.text(0.04, 0.04, text, transform=axes.transAxes, size=7.5, color="white", va="bottom").set_bbox(
        {"facecolor": INK, "edgecolor": "none", "pad": 1.5}
    )


def _color(name: str, one: Explanation) -> str:
    """Return the color of a class: that of right answers or that of the wrong one."""
    if one.label is None:
        return INK
    return BLUE if name == one.label else VERMILLION if name == one.answer else INK


def _below(axes: Axes, line: int, text: str, color: str, *, bold: bool = False) -> None:
    axes.annotate(
        text,
        (0, 0),
        xytext=(0, -4 - 12 * line),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        color=color,
        size=8.5,
        weight="bold" if bold else "normal",
    )


def _per_cent(probability: float) -> str:
    return "> 99.9 %" if probability > 0.999 else f"{100 * probability:.1f} %"
