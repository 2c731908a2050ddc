"""The figures of an evaluation: what they say, of any number of classes and of any names."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_predictions import predictions_of
from PIL import Image

from graftline.data.version import DatasetVersion
from graftline.evaluation.evaluation import Evaluation
from graftline.evaluation.metrics import Interval, score
from graftline.evaluation.predictions import Classifier, Predictions
from graftline.report.captions import CAPTIONS, HEADINGS
from graftline.report.chart import MOST_POINTS
from graftline.report.charts import curve_charts, reliability_charts
from graftline.report.figures import write_figures

SVG = "{http://www.w3.org/2000/svg}"
SCORES = {"auroc": Interval(0.9, 0.8, 0.95), "ece": Interval(0.1, 0.05, 0.2)}
EVIL = ["a < b & c", '"quoted" \x07 \u200b', "<script>", "猫", "$5$", "_hidden", "x" * 300, "x" * 299 + "y"]


def random_predictions(num_images: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.arange(num_images) % num_classes
    logits = generator.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += 1.5
    scores = np.exp(logits)
    return scores / scores.sum(axis=1, keepdims=True), labels


def drawn(predictions: Predictions, folder: Path) -> dict[str, list[str]]:
    """Return the texts of each figure; images that are only made up are all one."""
    if not Path(predictions.paths[0]).exists():
        Image.new("RGB", (30, 20), "orange").save(folder / "image.png")
        predictions = replace(predictions, paths=[str(folder / "image.png")] * len(predictions.paths))
    return {name: texts(file) for name, file in write_figures(predictions, SCORES, folder).items()}


def texts(file: Path) -> list[str]:
    return [" ".join("".join(one.itertext()).split()) for one in ET.parse(file).getroot().iter(f"{SVG}text")]


@pytest.mark.parametrize("num_classes", [2, 5, 20, 21])
def test_every_figure_is_drawn_for_any_number_of_classes(num_classes: int, tmp_path: Path) -> None:
    predictions = predictions_of(*random_predictions(8 * num_classes, num_classes))
    names = ["confusion_matrix", "roc_curves", "precision_recall_curves", "reliability_diagram", "confidences"]
    shown = drawn(predictions, tmp_path)
    assert list(shown) == [*names, "coverage_curve", "confident_mistakes"]
    for name in shown:
        root = ET.parse(tmp_path / f"{name}.svg").getroot()
        left, top, width, height = map(float, root.attrib["viewBox"].split())
        assert (left, top) == (0, 0)
        assert min(width, height) > 200
        assert len(shown[name]) >= 4


def test_whatever_has_a_heading_has_a_caption() -> None:
    assert set(CAPTIONS) == set(HEADINGS)


def test_confusion_matrix_shows_counts_and_row_shares(tmp_path: Path) -> None:
    labels = np.array([0] * 8 + [1] * 2)
    predicted = np.array([0] * 7 + [1] + [0, 1])
    shown = drawn(predictions_of(np.eye(2)[predicted], labels, ["cat", "dog"]), tmp_path)["confusion_matrix"]
    assert shown[0] == "2 of 10 images classified wrongly"
    assert [one for one in shown if one.endswith(" %")] == ["87.5 %", "12.5 %", "50.0 %", "50.0 %"]
    assert {"cat", "8 images", "dog", "2 images"} <= set(shown)


def test_beyond_twenty_classes_the_top_confusions_are_named(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(30), 10)
    predicted = labels.copy()
    predicted[70:76] = 12  # six of class 7
    predicted[150:152] = 3  # two of class 15
    names = [f"n{number}" for number in range(30)]
    shown = drawn(predictions_of(np.eye(30)[predicted], labels, names), tmp_path)["confusion_matrix"]
    assert [one for one in shown if "→ n" in one] == ["n7 → n12", "n15 → n3"]
    assert "6 (60 % of the class)" in shown


def test_names_that_no_file_of_text_could_hold_are_drawn(tmp_path: Path) -> None:
    probabilities, labels = random_predictions(80, len(EVIL))
    shown = drawn(predictions_of(probabilities, labels, EVIL), tmp_path)
    matrix = shown["confusion_matrix"]
    assert {"a < b & c", "<script>", "猫", "$5$", "_hidden"} <= set(matrix)
    assert len({name for name in matrix if "xxx" in name}) == 2, "long names stay distinct"
    assert max(map(len, shown["roc_curves"])) <= 80


TWINS = [f"steel plate scratched deeply on left side {letter}" for letter in "AB"]
TWINS += [f"connector_type_{letter}_front_half_broken" for letter in "ab"]


@pytest.mark.parametrize("num_classes", [12, 22])
def test_twins_are_told_apart_in_every_figure(num_classes: int, tmp_path: Path) -> None:
    probabilities, labels = random_predictions(20 * num_classes, num_classes)
    names = [*TWINS, *(f"n{number}" for number in range(num_classes - 4))]
    probabilities[labels < 4] = np.full(num_classes, 0.01)
    rows = np.flatnonzero(labels < 4)
    probabilities[rows, labels[rows] ^ 1] = 1 - 0.01 * (num_classes - 1)  # each twin is taken for the other
    predictions = predictions_of(probabilities, labels, names)
    shown = drawn(predictions, tmp_path)
    assert len({one for one in shown["confident_mistakes"] if one.startswith("labeled ")}) == 4
    for name in ("roc_curves", "precision_recall_curves"):
        legend = [one for one in shown[name] if re.match(r"(?!AUROC|average p).+ \d\.\d{3}(, among the worst)?$", one)]
        assert len(legend) == len(set(legend)) == (13 if num_classes == 12 else 4)
        assert ("among the worst" in legend[0]) == (num_classes > 12)
    if num_classes > 20:
        confused = [one for one in shown["confusion_matrix"] if "→" in one]
        assert all(len(set(one.split(" → "))) == 2 for one in confused)
        assert len(set(confused)) == len(confused)
    for chart in curve_charts(predictions, SCORES, names):
        assert len({one.style for one in chart.series}) == len(chart.series)


def test_curves_of_an_absent_class_are_left_out(tmp_path: Path) -> None:
    probabilities, labels = random_predictions(40, 4)
    labels[labels == 2] = 0
    shown = drawn(predictions_of(probabilities, labels, ["a", "b", "absent", "d"]), tmp_path)
    for name in ("roc_curves", "precision_recall_curves"):
        labeled = [one.split()[0] for one in shown[name] if one.split()[0] in ("a", "b", "absent", "d", "average")]
        assert labeled[-4:] == ["a", "b", "d", "average"]


def test_average_precision_is_the_area_under_the_drawn_curve() -> None:
    probabilities, labels = random_predictions(400, 3)
    chart = curve_charts(predictions_of(probabilities, labels, "abc"), {}, "abc")[-1]
    for series in chart.series[:3]:
        area = float(series.label.split()[1].rstrip(","))
        assert np.mean(np.asarray(series.y)) == pytest.approx(area, abs=0.005)
        assert len(chart.points(series)) <= MOST_POINTS


def test_reliability_points_lie_at_mean_confidence_and_accuracy() -> None:
    sure = np.array([0.9, 0.9, 0.88, 0.62])
    labels = np.array([1, 1, 0, 1])
    predictions = predictions_of(np.stack([1 - sure, sure], axis=1), labels)
    diagonal, _ = reliability_charts(predictions, SCORES["ece"])
    (points,) = [one for one in diagonal.series if one.kind == "points"]
    np.testing.assert_allclose(np.asarray(points.x), [0.62, (0.9 + 0.9 + 0.88) / 3], atol=1e-7)
    np.testing.assert_allclose(np.asarray(points.y), [1, 2 / 3])
    assert diagonal.note == "ECE 0.100, 95 % interval 0.050 to 0.200"


def test_the_surest_mistakes_come_first(version: DatasetVersion, tmp_path: Path) -> None:
    samples = version.samples("test")
    confidences = np.linspace(0.5, 0.99, 60)
    predicted = (samples.labels + 1) % 3
    predicted[55:] = samples.labels[55:]  # the surest are right, so they are not shown
    probabilities = np.full((60, 3), 0.0)
    probabilities[np.arange(60), samples.labels] = 1 - confidences
    probabilities[np.arange(60), predicted] = confidences
    predictions = predictions_of(probabilities, samples.labels, version.class_names, paths=samples.paths)
    shown = drawn(predictions, tmp_path)["confident_mistakes"]
    said = [float(one.split()[-2]) for one in shown if one.endswith(" %")]
    np.testing.assert_allclose(said, 100 * confidences[54:42:-1], atol=0.05)
    assert sum(one.startswith("labeled ") for one in shown) == 12
    assert "labeled red $5 & $6" in shown
    images = list(ET.parse(tmp_path / "confident_mistakes.svg").getroot().iter(f"{SVG}image"))
    assert len(images) == 12
    assert all(one.attrib["href"].startswith("data:image/webp;base64,") for one in images)


def test_an_evaluation_is_drawn_and_again_the_same(
    classifier: Classifier, version: DatasetVersion, tmp_path: Path
) -> None:
    result = Evaluation(resamples=100).run(classifier, version)
    files = write_figures(result.predictions, result.scores, tmp_path / "figures")
    assert files == {name: tmp_path / "figures" / f"{name}.svg" for name in files}
    assert {"roc_curves", "confident_mistakes"} < set(files)
    again = write_figures(result.predictions, result.scores, tmp_path / "again")
    assert all(again[name].read_bytes() == file.read_bytes() for name, file in files.items())


def test_a_perfect_model_has_no_sheet_of_mistakes(tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    predictions = predictions_of(0.97 * np.eye(3)[labels] + 0.01, labels)
    scores = score(predictions, resamples=100)
    assert scores["accuracy"].value == 1
    assert "confident_mistakes" not in write_figures(predictions, scores, tmp_path)
