import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from sklearn.metrics import accuracy_score, log_loss

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import save_bundle
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.evaluation import Classifier, Evaluation, Result
from graftline.evaluation.metrics import score
from graftline.report.html import write_report


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def result(classifier: Classifier, version: DatasetVersion, directory: Path) -> Result:
    return Evaluation(resamples=100).run(classifier, version, directory)


@pytest.fixture(scope="module")
def rows(result: Result) -> pd.DataFrame:
    return pd.read_parquet(result.predictions)


def test_a_run_leaves_scores_predictions_and_figures(result: Result, directory: Path) -> None:
    names = ["confusion_matrix", "roc_curves", "precision_recall_curves", "reliability_diagram", "confident_mistakes"]
    assert list(result.figures) == names
    found = sorted(str(path.relative_to(directory)) for path in directory.rglob("*.*"))
    assert found == sorted(["predictions.parquet", *(f"figures/{name}.png" for name in names)])
    assert result.images_per_second > 0
    assert result.notes


def test_scores_are_those_of_the_predictions(result: Result, rows: pd.DataFrame, version: DatasetVersion) -> None:
    probabilities = rows[[f"probability/{name}" for name in version.class_names]].to_numpy()
    assert 0.5 < rows["correct"].mean() < 1
    assert result.scores["accuracy"].value == accuracy_score(rows["label"], rows["predicted"])
    labels = rows["label"].map({name: number for number, name in enumerate(version.class_names)}).to_numpy()
    assert result.scores["log_loss"].value == pytest.approx(log_loss(labels, probabilities), abs=1e-6)
    weighted = accuracy_score(rows["label"], rows["predicted"], sample_weight=rows["weight"])
    assert result.scores["accuracy_weighted"].value == pytest.approx(weighted)
    assert result.metrics_json()["accuracy"] == dataclasses.asdict(result.scores["accuracy"])


def test_rows_are_joined_with_the_right_file(rows: pd.DataFrame, version: DatasetVersion) -> None:
    rows, manifest = rows.set_index("path"), version.table().set_index("path")
    assert len(rows) == 60
    assert (manifest.loc[rows.index, "split"] == "test").all()
    assert (manifest.loc[rows.index, "sha256"] == rows["sha256"]).all()
    assert (manifest.loc[rows.index, "label"] == rows["label"]).all()


def test_the_same_run_gives_the_same_files(
    result: Result, classifier: Classifier, version: DatasetVersion, tmp_path: Path
) -> None:
    again = Evaluation(resamples=100, batch_size=7).run(classifier, version, tmp_path)
    assert again.scores == result.scores
    assert again.predictions.read_bytes() == result.predictions.read_bytes()
    for name, path in result.figures.items():
        assert again.figures[name].read_bytes() == path.read_bytes()


def test_a_perfect_model_has_no_sheet_of_mistakes(version: DatasetVersion, tmp_path: Path) -> None:
    samples = version.samples("test")
    label_of = dict(zip(samples.paths, samples.labels, strict=True))

    class Perfect:
        class_names = version.class_names

        def predict(
            self, images: Iterable[str], batch_size: int, on_progress: Callable[[int], None] | None
        ) -> np.ndarray:
            labels = [label_of[image] for image in images]
            assert batch_size == 32
            assert on_progress is not None
            on_progress(len(labels))
            probabilities: np.ndarray = np.eye(3, dtype=np.float32)[labels]
            return probabilities

    result = Evaluation(resamples=100).run(Perfect(), version, tmp_path)
    assert "confident_mistakes" not in result.figures
    assert result.scores["accuracy"].value == 1


def test_another_split_can_be_asked_for(classifier: Classifier, version: DatasetVersion, tmp_path: Path) -> None:
    result = Evaluation(resamples=100).run(classifier, version, tmp_path, split="validation")
    assert len(pd.read_parquet(result.predictions)) == 3


def test_a_model_of_other_classes_is_refused(
    cat_classifier: Classifier, version: DatasetVersion, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"\(cat, dog, cow\) are not those of squares \(blue, "):
        Evaluation().run(cat_classifier, version, tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_few_resamples_are_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation\.resamples=10 is too few .* at least 100"):
        Evaluation(resamples=10)


def test_the_report_takes_what_a_run_left(result: Result, tmp_path: Path) -> None:
    path = write_report(
        tmp_path, title="Squares", facts={}, scores=result.scores, figures=result.figures, notes=result.notes
    )
    text = path.read_text(encoding="utf-8")
    assert text.count("<figure") == 5
    assert "<script>" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 1


def test_a_real_bundle_is_evaluated(version: DatasetVersion, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3)
    bundle = save_bundle(
        tmp_path / "bundle",
        network,
        timm_name="test_resnet",
        class_names=version.class_names,
        preprocessing=Preprocessing(image_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3),
        card={},
    )
    predictor = Predictor.from_directory(bundle, threads=1)
    result = Evaluation(resamples=100).run(predictor, version, tmp_path / "run")
    rows = pd.read_parquet(result.predictions)
    expected = predictor.predict(rows["path"])
    np.testing.assert_array_equal(rows[[f"probability/{name}" for name in version.class_names]].to_numpy(), expected)


def test_the_config_names_every_field_with_its_default() -> None:
    path = Path(__file__).parents[2] / "conf" / "evaluation" / "one_crop.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert values.pop("_target_") == f"{Evaluation.__module__}.{Evaluation.__qualname__}"
    assert values == dataclasses.asdict(Evaluation())


def test_scores_do_not_depend_on_the_order_of_the_images() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(3), 200).astype(np.float32)
    labels, order = generator.integers(0, 3, 200), generator.permutation(200)
    one, other = score(probabilities, labels, "abc"), score(probabilities[order], labels[order], "abc")
    for name, interval in one.items():
        assert interval.value == pytest.approx(other[name].value, abs=1e-6)
