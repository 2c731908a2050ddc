"""The picture of explanations: a row for each, with what was answered and the nearest training images."""

import numpy as np

from graftline.bundle.heat import GRAD_CAM, OCCLUSION
from graftline.evaluation.explanation import Explanation, Neighbor
from graftline.report.explanation_figure import explanation_figure
from graftline.report.style import BLUE, VERMILLION, png


def test_it_shows_each_image_its_heat_and_its_neighbors() -> None:
    view = np.random.default_rng(0).integers(0, 256, (32, 32, 1), np.uint8)
    heat = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    near = [Neighbor("n.png", label, 0.25, view) for label in ("cat", "dog", "$cow$")]
    one = Explanation("a.png", "cat", "dog", 0.9995, 0.1, 0.8, view, heat, GRAD_CAM, near)
    own = Explanation("b.png", None, "dog", 0.5, 0.1, 0.8, view, heat, OCCLUSION, ())
    figure = explanation_figure([one, own], "2 images", ["cat", "dog", "$cow$"])
    rows = np.array(figure.axes).reshape(2, 5)
    assert [len(axes.images) for axes in rows.ravel()] == [1] * 5 + [1, 1, 0, 0, 0]
    shown = [[text.get_text() for text in axes.texts] for axes in rows[0]]
    assert shown[0] == ["labeled cat"]
    assert shown[1] == ["dog  > 99.9 %", "bright part covered: 10.0 %", "dark part covered: 80.0 %"]
    assert rows[1, 1].texts[-1].get_text() == "occlusion", "the other is by Grad-CAM, as is said above"
    assert "it speaks for the answer (Grad-CAM; occlusion where marked)." in figure.texts[1].get_text()
    alone = explanation_figure([own], "1 image", ["cat", "dog", "$cow$"])
    assert alone.texts[1].get_text() == "Bright: covering it makes the answer less sure (occlusion)."
    assert alone.get_figwidth() == figure.get_figwidth(), "title and subtitle want as much room without neighbors"
    assert [axes.get_title(loc="left") for axes in alone.axes] == ["image", "where it was seen", "", "", ""]
    assert [texts[0] for texts in shown[2:]] == ["cat", "dog", r"\$cow\$"]
    assert [axes.texts[0].get_color() for axes in rows[0, 1:4]] == [VERMILLION, BLUE, VERMILLION]
    pixels = np.asarray(rows[0, 1].images[0].get_array())
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert pixels[-1].mean() > pixels[0].mean()  # warm is bright
    assert png(figure).startswith(b"\x89PNG")


def test_twins_have_different_names() -> None:
    view, heat = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32)
    twins = [f"connector_type_{letter}_front_broken" for letter in "ab"]
    one = Explanation("a.png", twins[0], twins[1], 0.9, 0.1, 0.8, view, heat, GRAD_CAM, ())
    cells = explanation_figure([one], "1 image", ["good", *twins]).axes
    assert [axes.texts[0].get_text() for axes in cells[:2]] == [
        "labeled 1: connecto…broken",
        "2: connecto…broken  90.0 %",
    ]
