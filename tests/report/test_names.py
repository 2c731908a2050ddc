"""Class names in figures: any script, any first letter, any length; whole or distinct."""

import pytest
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from graftline.report import names
from graftline.report.style import new_figure, png, styled

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


@styled()
def drawn(class_names: list[str]) -> Figure:
    """Draw names at an axis and in a legend."""
    figure = new_figure(8, 6, "names", "of classes")
    axes = figure.subplots()
    shown = names.short_names(class_names, 18)
    axes.set_yticks(range(len(shown)), shown)
    for number, name in enumerate(shown):
        axes.plot([0, 1], [0, number], label=names.legend_label(name))
    axes.legend()
    png(figure)
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text().strip() for text in figure.findobj(Text)]


def test_names_with_marks_of_other_languages_are_whole_on_axes_and_in_legends() -> None:
    figure = drawn(ODD)
    axis = [text.replace("\\", "") for text in texts(figure)]
    assert set(ODD) <= set(axis)
    (legend,) = figure.findobj(Legend)
    assert {text.get_text().replace("\\", "").strip() for text in legend.get_texts()} == set(ODD)


@pytest.mark.parametrize("first", range(0, len(SCRIPTS), 4))
def test_names_of_any_script_are_drawn_without_a_missing_glyph(first: int) -> None:
    some = [*SCRIPTS[first : first + 4], "cat", "dog"]
    shown = " ".join(texts(drawn(some)))
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
    assert len({text for text in texts(drawn(twins)) if "…" in text}) == 4


def test_a_name_that_looks_like_a_number_of_another_stays_distinct() -> None:
    clash = ["1: " + "z" * 30, "z" * 30, "z" * 31]
    assert len(set(names.short_names(clash, 12))) == len(clash)
