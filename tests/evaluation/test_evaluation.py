import dataclasses
import logging
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from made_predictions import predictions_of
from sklearn.metrics import accuracy_score, log_loss

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import save_bundle
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.evaluation import Evaluation, EvaluationResult
from graftline.evaluation.metrics import score
from graftline.evaluation.notes import notes_on
from graftline.evaluation.predictions import Classifier
from graftline.execution import Execution


@pytest.fixture(scope="module")
def result(classifier: Classifier, version: DatasetVersion) -> EvaluationResult:
    return Evaluation(resamples=100).run(classifier, version)


@pytest.fixture(scope="module")
def rows(result: EvaluationResult) -> pd.DataFrame:
    return result.predictions.table()


def test_an_evaluation_gives_predictions_scores_and_notes(result: EvaluationResult) -> None:
    assert result.images_per_second > 0
    assert result.scores == score(result.predictions, resamples=100)
    assert result.notes == notes_on(result.predictions, result.scores)


def test_it_knows_neither_figures_nor_training() -> None:
    heavy = ("matplotlib", "pytorch_lightning", "graftline.report", "graftline.training", "mlflow")
    code = f"import sys, graftline.evaluation.evaluation; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scores_are_those_of_the_predictions(
    result: EvaluationResult, rows: pd.DataFrame, version: DatasetVersion
) -> None:
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


def test_the_same_run_gives_the_same_file(
    result: EvaluationResult, classifier: Classifier, version: DatasetVersion, tmp_path: Path
) -> None:
    again = Evaluation(resamples=100, batch_size=7).run(classifier, version)
    assert again.scores == result.scores
    files = [found.predictions.save(tmp_path / f"{number}.parquet") for number, found in enumerate((result, again))]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_another_split_can_be_asked_for(classifier: Classifier, version: DatasetVersion) -> None:
    result = Evaluation(resamples=100).run(classifier, version, split="validation")
    assert len(result.predictions.paths) == 3


def test_a_model_of_other_classes_is_refused(cat_classifier: Classifier, version: DatasetVersion) -> None:
    with pytest.raises(UserError, match=r"does not know the classes blue, .*, only cat, dog, cow"):
        Evaluation().run(cat_classifier, version)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"resamples": 10}, r"^Evaluation\.resamples is 10, too few .* at least 100"),
        ({"batch_size": 0}, r"^Evaluation\.batch_size is 0, it must be at least 1\.$"),
        ({"seed": -1}, r"^Evaluation\.seed is -1, it must be at least 0\.$"),
    ],
)
def test_numbers_that_cannot_be_are_refused(given: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Evaluation(**given)  # type: ignore[arg-type]


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
    predictor = Predictor.from_directory(bundle, execution=Execution(threads=1))
    result = Evaluation(resamples=100).run(predictor, version)
    expected = predictor.predict(result.predictions.paths)
    np.testing.assert_array_equal(result.predictions.probabilities, expected)
    assert result.predictions.bundle_digest == predictor.digest


def test_the_config_names_every_field_with_its_default() -> None:
    path = Path(__file__).parents[2] / "conf" / "evaluation" / "one_crop.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert values.pop("_target_") == f"{Evaluation.__module__}.{Evaluation.__qualname__}"
    assert values == dataclasses.asdict(Evaluation())


def test_scores_do_not_depend_on_the_order_of_the_images() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(3), 200).astype(np.float32)
    labels, order = generator.integers(0, 3, 200), generator.permutation(200)
    one = score(predictions_of(probabilities, labels, "abc"))
    other = score(predictions_of(probabilities[order], labels[order], "abc"))
    for name, interval in one.items():
        assert interval.value == pytest.approx(other[name].value, abs=1e-6)


class Counting:
    """Another classifier, that counts the images which it classifies."""

    def __init__(self, classifier: Classifier) -> None:
        self.inner = classifier
        self.class_names, self.digest, self.images = classifier.class_names, classifier.digest, 0
        self.decision = classifier.decision

    def logits(self, images: Iterable[str], *arguments: Any) -> np.ndarray:
        paths = list(images)
        self.images += len(paths)
        return self.inner.logits(paths, *arguments)


@pytest.mark.parametrize("change", [0.0, 9e-5, 0.01, np.nan])
def test_known_logits_are_scored_where_the_classifier_confirms_them(
    change: float,
    result: EvaluationResult,
    classifier: Classifier,
    version: DatasetVersion,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("graftline.evaluation.evaluation.CHECKED_IMAGES", 10)
    counting = Counting(classifier)
    known = result.predictions.logits + np.float32(change)
    with caplog.at_level(logging.INFO, "graftline"):
        found = Evaluation(resamples=100).run(counting, version, known_logits=known)
    confirmed = change < 1e-4
    assert counting.images == (10 if confirmed else 70)
    assert ("scored by their cached activations" in caplog.text) == confirmed
    assert ("all images are classified" in caplog.text) != confirmed
    np.testing.assert_array_equal(found.predictions.logits, known if confirmed else result.predictions.logits)
    assert found.scores.keys() == result.scores.keys()
    assert found.images_per_second > 0
