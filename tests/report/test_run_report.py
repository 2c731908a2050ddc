from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from graftline.report.html import write_report
from matplotlib.figure import Figure

from graftline.evaluation.metrics import Interval
from graftline.report.style import save

EVIL = '<script>alert("1")</script>'
SCORES = {
    "accuracy": Interval(0.8842, 0.8604, 0.9091),
    "log_loss": Interval(1.8, 1.7, 2.0),
    f"precision/{EVIL}": Interval(0.5, 0.4, 0.6),
    f"recall/{EVIL}": Interval(0.75, 0.7, 0.8),
    "recall/a/b": Interval(0.25, 0.2, 0.3),
}


class Page(HTMLParser):
    """Collects tags and texts, and checks that tags close in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


@pytest.fixture
def page(tmp_path: Path) -> Page:
    small, wide = Figure(figsize=(4, 3)), Figure(figsize=(9, 3))
    on_disk = save(small, tmp_path / "confusion_matrix.png")
    path = write_report(
        tmp_path / "report",
        title=f"Squares {EVIL}",
        facts={"data set": EVIL, "freeze plan": "All but the head is frozen, since " + 60 * "x", EVIL: "fact"},
        scores=SCORES,
        figures={"confusion_matrix": on_disk, "training_curves": wide, EVIL: small},
        notes=[f"A note on {EVIL}.", "3 images were left out."],
    )
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_what_users_write_is_text(page: Page) -> None:
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.texts.count(EVIL) == 3  # a fact's label, a fact, a class
    assert f"Squares {EVIL}" in page.texts
    assert f"A note on {EVIL}." in page.texts


def test_nothing_is_asked_of_the_network(page: Page) -> None:
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert len(links) == 3
    assert all(value is not None and value.startswith("data:image/png;base64,") for value in links)
    (style,) = [text for text in page.texts if text.startswith(":root")]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_headline_and_scores(page: Page) -> None:
    assert page.texts[page.texts.index(f"Squares {EVIL}", 1) + 1 :][:3] == [
        "88.4 %",
        "accuracy",
        "95 % interval 86.0 to 90.9 %",
    ]
    labels = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("class") == "bar"]
    assert labels == [
        "88.4 %, 95 % interval 86.0 to 90.9 %",
        "88.4 %, 95 % interval 86.0 to 90.9 %",
        "1.800, 95 % interval 1.700 to 2.000",
        "75.0 %, 95 % interval 70.0 to 80.0 %",
        "50.0 %, 95 % interval 40.0 to 60.0 %",
        "25.0 %, 95 % interval 20.0 to 30.0 %",
    ]
    assert page.texts.count("not defined") == 1  # the precision of a/b
    assert "a/b" in page.texts


def test_bars_end_at_one_or_beyond_the_interval(page: Page) -> None:
    marks = [attributes["style"] for tag, attributes in page.tags if tag == "b"]
    assert marks[0] == "left:88.42%"
    assert marks[2] == f"left:{100 * 1.8 / 2.2:.2f}%"


def test_figures_have_captions_and_room(page: Page) -> None:
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "figure"] == [None, "wide", None]
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [one["alt"] for one in images] == ["Which classes are confused", "Training curves", EVIL]
    assert (images[0]["width"], images[0]["height"]) == ("640", "480")
    assert "Training curves." in page.texts


def test_many_classes_are_folded(tmp_path: Path) -> None:
    scores = SCORES | {f"recall/{number}": Interval(0.5, 0.4, 0.6) for number in range(20)}
    path = write_report(tmp_path, title="many", facts={}, scores=scores, figures={}, notes=[])
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert [attributes for tag, attributes in page.tags if tag == "details"] == [{}]
    assert "22 classes" in page.texts
    assert "Notes" not in page.texts
    assert "Pictures" not in page.texts
