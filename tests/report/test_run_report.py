import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_predictions import predictions_of
from made_report import EVIL, made_report, made_result

from graftline.data.version import DatasetVersion
from graftline.evaluation.predictions import Classifier, Predictions, predict_split
from graftline.report.confusion import MOST_LISTED, MOST_PER_CELL, confusion
from graftline.report.content import Report
from graftline.report.run_report import write_report


class Page(HTMLParser):
    """Collects tags and texts, and checks that tags close in order."""

    VOID = frozenset({"meta", "img", "br", "circle", "path", "rect", "polyline", "polygon"})

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
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(" ".join(data.split()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def predictions(classifier: Classifier, version: DatasetVersion) -> Predictions:
    return predict_split(classifier, version)


@pytest.fixture(scope="module")
def page(predictions: Predictions, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("report")
    path = write_report(folder / "run", made_report(predictions, folder))
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_what_users_write_is_text(page: Page) -> None:
    assert len(page.all("script")) == 1  # ours
    assert f"Squares {EVIL}" in page.texts
    assert f"A note on {EVIL}." in page.texts
    assert page.texts.count(EVIL) >= 3  # a fact and its label, a slice
    assert "<script>alert(1)</script>" in page.texts  # a class


def test_nothing_is_asked_of_the_network(page: Page) -> None:
    links = [
        value or "" for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in links)
    (style,) = [text for text in page.texts if text.startswith("/* One look")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [attributes["content"] for attributes in page.all("meta") if "http-equiv" in attributes]
    assert policy is not None
    assert re.fullmatch(
        r"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-[\w+/=]{44}'", policy
    )


def test_every_link_leads_somewhere(page: Page) -> None:
    places = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {(attributes.get("href") or "").removeprefix("#") for attributes in page.all("a")}
    assert links <= places
    sections = {"scores", "confusion", "mistakes", "classes", "slices", "probabilities", "curves", "members"}
    assert sections | {"comparison", "training", "explain", "audit", "learning-curve", "facts", "missing"} <= places


def test_each_cell_of_the_matrix_has_its_images(page: Page, predictions: Predictions) -> None:
    found = confusion(predictions)
    assert found.num_wrong == (predictions.predicted != predictions.labels).sum()
    shown = {one.anchor: one for one in (*found.wrong, *found.right)}
    links = [attributes["href"] for attributes in page.all("a") if attributes.get("aria-label")]
    assert {f"#{anchor}" for anchor in shown} == set(links)
    for row, cells in enumerate(found.rows):
        for column, cell in enumerate(cells):
            mask = (predictions.labels == row) & (predictions.predicted == column)
            assert cell.count == mask.sum()
            if cell.count:
                images = shown[cell.anchor].images
                assert len(images) == min(cell.count, 8 if row == column else MOST_PER_CELL)
                assert all(mask[image.row] for image in images)
                sure = [image.confidence for image in images]
                assert sure == sorted(sure, reverse=row != column)


def test_what_cannot_be_seen_is_said(page: Page) -> None:
    images = page.all("img")
    assert images
    assert all(image["alt"] for image in images)
    drawings = [one for one in page.all("svg") if one.get("role") == "img"]
    assert len(drawings) == 8
    assert all(one["aria-label"] for one in drawings)
    assert "▼ worse" in page.texts
    assert "make learning-curve" in page.texts


def test_without_test_images_there_are_no_scores(tmp_path: Path) -> None:
    path = write_report(tmp_path, Report(title="A run", kind="training", facts={}, result=None, notes=["Not tested."]))
    page = Page(path.read_text(encoding="utf-8"))
    assert "No test scores." in page.texts
    assert "Not tested." in page.texts
    assert not page.all("img")
    assert not page.all("table")


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_single_class_or_no_mistake_is_no_trouble(wrong: int, version: DatasetVersion, tmp_path: Path) -> None:
    paths = version.samples("test").paths[:6]
    probabilities = np.tile([[0.9, 0.1]], (6, 1))
    probabilities[:wrong] = [0.2, 0.8]
    predictions = predictions_of(probabilities, np.zeros(6, int), ["a", "b"], paths=paths)
    result = made_result(predictions)
    scores = {name: interval for name, interval in result.scores.items() if name != "auroc"}
    path = write_report(tmp_path, Report(title="A", kind="test", facts={}, result=replace(result, scores=scores)))
    page = Page(path.read_text(encoding="utf-8"))
    assert [attributes["id"] for attributes in page.all("section")].count("mistakes") == wrong
    assert "a" in page.texts


def test_a_thousand_classes_make_a_page_of_a_few_megabytes(version: DatasetVersion, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    num_images, num_classes = 4000, 1000
    labels = np.arange(num_images) % num_classes
    probabilities = np.full((num_images, num_classes), 1e-4, np.float32)
    answers = np.where(generator.random(num_images) < 0.7, labels, (labels + 1) % num_classes)
    probabilities[np.arange(num_images), answers] = 0.9
    samples = version.samples("test").paths
    paths = [samples[number % len(samples)] for number in range(num_images)]
    names = [f"species {number} of a long-named genus" for number in range(num_classes)]
    predictions = predictions_of(probabilities, labels, names, paths=paths)
    report = Report(title="Many", kind="evaluation", facts={}, result=made_result(predictions))
    path = write_report(tmp_path, report)
    assert path.stat().st_size < 4e6
    page = Page(path.read_text(encoding="utf-8"))
    assert len([one for one in page.all("section") if "panel" in (one.get("class") or "")]) == MOST_LISTED
    assert len(page.all("details")) == 1, "most classes are folded"
    assert not [one for one in page.all("table") if "matrix" in (one.get("class") or "")]
