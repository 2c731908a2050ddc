import io
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from made_predictions import predictions_of
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from graftline.data.version import DatasetVersion
from graftline.evaluation.evaluation import Evaluation
from graftline.evaluation.metrics import Interval, score
from graftline.evaluation.predictions import Classifier
from graftline.report import figures
from graftline.report.captions import CAPTIONS, HEADINGS
from graftline.report.style import BLUE, CATEGORIES, VERMILLION, png, save, save_all

pytestmark = pytest.mark.filterwarnings("error")


def random_predictions(num_images: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.arange(num_images) % num_classes
    logits = generator.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += 1.5
    scores = np.exp(logits)
    return scores / scores.sum(axis=1, keepdims=True), labels


def texts(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [one.get_text() for one in figure.findobj(matplotlib.text.Text)]


@pytest.mark.parametrize("num_classes", [2, 5, 20, 21])
def test_every_figure_is_drawn_for_any_number_of_classes(num_classes: int) -> None:
    probabilities, labels = random_predictions(3 * num_classes, num_classes)
    predictions = predictions_of(probabilities, labels)
    interval = Interval(0.9, 0.8, 0.95)
    for figure in (
        figures.confusion_matrix(predictions),
        figures.roc_curves(predictions, interval),
        figures.precision_recall_curves(predictions),
        figures.reliability_diagram(predictions, interval),
    ):
        image = Image.open(io.BytesIO(png(figure)))
        assert image.format == "PNG"
        assert min(image.size) > 800


def test_whatever_has_a_heading_has_a_caption() -> None:
    assert set(CAPTIONS) == set(HEADINGS)


def test_the_curves_of_many_classes_are_one_object() -> None:
    predictions = predictions_of(*random_predictions(600, 300))
    for figure in (
        figures.roc_curves(predictions, Interval(0.9, 0.8, 0.95)),
        figures.precision_recall_curves(predictions),
    ):
        (axes,) = figure.axes
        (others,) = (each for each in axes.collections if isinstance(each, LineCollection))
        assert len(others.get_segments()) == 297, "of 300 classes, three are named"
        assert len(axes.lines) < 10
        assert "297 other classes" in texts(figure)


def test_confusion_matrix_shows_counts_and_row_shares() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    predicted = np.array([0] * 7 + [1] + [0, 1])
    shown = texts(figures.confusion_matrix(predictions_of(np.eye(2)[predicted], labels, ["cat", "dog"])))
    assert "2 of 10 images classified wrongly" in shown
    assert [one for one in shown if one.endswith(" %")] == ["87.5 %", "12.5 %", "50.0 %", "50.0 %"]
    assert "cat\n8 images" in shown
    assert "dog\n2 images" in shown


def test_beyond_twenty_classes_the_top_confusions_are_named() -> None:
    labels = np.repeat(np.arange(30), 10)
    predicted = labels.copy()
    predicted[70:76] = 12  # six of class 7
    predicted[150:152] = 3  # two of class 15
    names = [f"n{number}" for number in range(30)]
    shown = texts(figures.confusion_matrix(predictions_of(np.eye(30)[predicted], labels, names)))
    assert [one for one in shown if "→ n" in one] == ["n7 → n12", "n15 → n3"]
    assert " 6  (60 % of the class)" in shown


def test_curves_of_an_absent_class_are_left_out() -> None:
    probabilities, labels = random_predictions(40, 4)
    labels[labels == 2] = 0
    predictions = predictions_of(probabilities, labels, ["a", "b", "absent", "d"])
    for figure in (
        figures.roc_curves(predictions, Interval(0.9, 0.8, 1)),
        figures.precision_recall_curves(predictions),
    ):
        legend = figure.axes[0].get_legend()
        assert legend is not None
        labeled = [one.get_text().split("  ")[0] for one in legend.get_texts()]
        assert labeled == ["a", "b", "d", "average"]


def test_average_precision_is_the_area_under_the_drawn_curve() -> None:
    probabilities, labels = random_predictions(400, 3)
    (axes,) = figures.precision_recall_curves(predictions_of(probabilities, labels, "abc")).axes
    for line in axes.get_lines()[:3]:
        area = float(str(line.get_label()).split()[-1])
        assert np.mean(np.asarray(line.get_ydata())) == pytest.approx(area, abs=0.005)


def test_reliability_points_lie_at_mean_confidence_and_accuracy() -> None:
    sure = np.array([0.9, 0.9, 0.88, 0.62])
    labels = np.array([1, 1, 0, 1])
    figure = figures.reliability_diagram(
        predictions_of(np.stack([1 - sure, sure], axis=1), labels), Interval(0.1, 0.05, 0.2)
    )
    (points,) = [line for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(np.asarray(points.get_xdata()), [0.62, (0.9 + 0.9 + 0.88) / 3], atol=1e-7)
    np.testing.assert_allclose(np.asarray(points.get_ydata()), [1, 2 / 3])
    assert "Calibration error: 0.100 (0.050 to 0.200)" in texts(figure)


def test_the_surest_mistakes_come_first(version: DatasetVersion) -> None:
    samples = version.samples("test")
    confidences = np.linspace(0.5, 0.99, 60)
    predicted = (samples.labels + 1) % 3
    predicted[55:] = samples.labels[55:]  # the surest are right, so they are not shown
    probabilities = np.full((60, 3), 0.0)
    probabilities[np.arange(60), samples.labels] = 1 - confidences
    probabilities[np.arange(60), predicted] = confidences
    figure = figures.confident_mistakes(
        predictions_of(probabilities, samples.labels, version.class_names, paths=samples.paths)
    )
    assert figure is not None
    shown = texts(figure)
    said = [float(one.split("  ")[1].removesuffix(" %")) for one in shown if one.endswith(" %")]
    np.testing.assert_allclose(said, 100 * confidences[54:42:-1], atol=0.05)
    assert sum(one.startswith("labeled ") for one in shown) == 12
    assert r"labeled red \$5 & \$6" in shown  # not read as a formula
    first = figure.axes[0].get_images()[0].get_array()
    assert first is not None
    assert first.shape == (30, 30, 3)  # 24 x 30 px on a square


def test_without_mistakes_there_is_no_sheet(version: DatasetVersion) -> None:
    samples = version.samples("test")
    assert figures.confident_mistakes(predictions_of(np.eye(3)[samples.labels], samples.labels)) is None


def test_the_style_stays_inside(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    probabilities, labels = random_predictions(30, 3)
    path = save(
        figures.confusion_matrix(predictions_of(probabilities, labels, ["花", "草", "木"])),
        tmp_path / "new" / "matrix.png",
    )
    with Image.open(path) as image:
        assert image.format == "PNG"
    assert [one.name for one in path.parent.iterdir()] == ["matrix.png"]
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


def test_an_evaluation_is_drawn(classifier: Classifier, version: DatasetVersion, tmp_path: Path) -> None:
    result = Evaluation(resamples=100).run(classifier, version)
    drawn = figures.draw_evaluation(result.predictions, result.scores)
    names = ["confusion_matrix", "roc_curves", "precision_recall_curves", "reliability_diagram", "coverage_curve"]
    names.append("confident_mistakes")
    assert list(drawn) == names
    files = save_all(drawn, tmp_path / "figures")
    assert files == {name: tmp_path / "figures" / f"{name}.png" for name in names}
    again = figures.draw_evaluation(result.predictions, result.scores)
    assert all(png(again[name]) == file.read_bytes() for name, file in files.items())


def test_a_perfect_model_has_no_sheet_of_mistakes() -> None:
    labels = np.arange(60) % 3
    predictions = predictions_of(0.97 * np.eye(3)[labels] + 0.01, labels)
    scores = score(predictions, resamples=100)
    assert scores["accuracy"].value == 1
    assert "confident_mistakes" not in figures.draw_evaluation(predictions, scores)
