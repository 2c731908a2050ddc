"""Class names in figures: any script, any first letter, any length; whole or distinct."""

import numpy as np
import pytest
from made_predictions import predictions_of
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from graftline.evaluation.metrics import Interval
from graftline.report import figures, names
from graftline.report.style import png

pytestmark = pytest.mark.filterwarnings("error")  # a glyph that is missing, a legend entry that is left out

ODD = ["$5", "$10 & $20", "_other", "<5 mm", "R&D", "C++", "a=b, c", "100%", "-dash", "größe"]
SCRIPTS = [
    "кошка",
    "γάτα",
    "猫",
    "犬科",
    "고양이",
    "قطة",
    "חתול",
    "बिल्ली",
    "แมว",
    "🐈",
    "\u200bghost",
    "tab\there",
    "𓃠",
]


def drawn(class_names: list[str]) -> list[Figure]:
    labels = np.arange(3 * len(class_names)) % len(class_names)
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(len(class_names)), len(labels))
    predictions = predictions_of(probabilities, labels, class_names)
    made = [
        figures.confusion_matrix(predictions),
        figures.roc_curves(predictions, Interval(0.9, 0.8, 1)),
        figures.precision_recall_curves(predictions),
    ]
    for figure in made:
        png(figure)
    return made


def texts(figure: Figure) -> list[str]:
    return [text.get_text().strip() for text in figure.findobj(Text)]


def test_names_with_marks_of_other_languages_are_whole_on_axes_and_in_legends() -> None:
    matrix, *curves = drawn(ODD[:6])  # as many as have a color of their own
    axis = [text.replace("\\", "") for text in texts(matrix)]
    assert set(ODD[:6]) <= set(axis)
    for figure in curves:
        (legend,) = figure.findobj(Legend)
        entries = [text.get_text().replace("\\", "").strip().rsplit("  ", 1)[0] for text in legend.get_texts()]
        assert set(entries) - {"average"} == set(ODD[:6])


@pytest.mark.parametrize("first", range(0, len(SCRIPTS), 4))
def test_names_of_any_script_are_drawn_without_a_missing_glyph(first: int) -> None:
    some = [*SCRIPTS[first : first + 4], "cat", "dog"]
    for figure in drawn(some):
        shown = " ".join(texts(figure))
        assert all(name in shown for name in ("cat", "dog"))


def test_what_no_font_draws_is_written_in_latin_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_installed", lambda: (names.TYPEFACE,))
    assert names.short_names(["猫", "犬", "größe", "🐈"]) == ["Mao", "Quan", "größe", ":cat2:"]
    assert all(name.isprintable() and name.strip() for name in names.short_names(["\u200b", "\ue000", "\t", ""]))


def test_long_names_stay_distinct() -> None:
    twins = ["x" * 199 + "a", "x" * 199 + "b", "x" * 100 + "c" + "x" * 99, "y" * 200, "y"]
    short = names.short_names(twins, 18)
    assert len(set(short)) == len(twins)
    assert max(map(len, short)) <= 18
    assert short[3:] == ["y" * 11 + "…" + "y" * 6, "y"]
    (matrix, *_) = drawn(twins)
    assert len({text for text in texts(matrix) if "…" in text and "\n" not in text}) == 4


def test_a_name_that_looks_like_a_number_of_another_stays_distinct() -> None:
    clash = ["1: " + "z" * 30, "z" * 30, "z" * 31]
    assert len(set(names.short_names(clash, 12))) == len(clash)
