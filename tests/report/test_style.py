"""The look of the figures that matplotlib draws."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from graftline.report.style import BLUE, CATEGORIES, VERMILLION, new_figure, save, styled


def test_the_style_stays_inside(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    with styled():
        figure = new_figure(4, 3, "flowers", "how to read it")
        figure.subplots()
    path = save(figure, tmp_path / "new" / "figure.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
    assert [one.name for one in path.parent.iterdir()] == ["figure.png"]
    assert dict(matplotlib.rcParams) == before


def test_colors_differ_for_color_blind_people() -> None:
    # Viénot et al. 1999, Color Research and Application 24(4), table 2 in linear RGB: protanopes and deuteranopes
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    linear = np.array([to_rgb(color) for color in CATEGORIES]) ** 2.2
    for matrix in (np.eye(3), protan, deutan):
        seen = np.clip(linear @ matrix.T, 0, 1) ** (1 / 2.2)
        distances = np.linalg.norm(seen[:, None] - seen, axis=2)[np.triu_indices(len(seen), 1)]
        assert distances.min() > 0.1
    assert CATEGORIES[:2] == (BLUE, VERMILLION)
