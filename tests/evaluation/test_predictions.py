"""Predictions: the table for people, and that their file loses nothing."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_predictions import predictions_of
from torch import from_numpy

from graftline.data.version import DatasetVersion
from graftline.data.version_writing import write_version
from graftline.errors import UserError
from graftline.evaluation.metrics import score
from graftline.evaluation.notes import notes_on
from graftline.evaluation.predictions import Classifier, Predictions, predict_split

PROBABILITIES = np.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
PATHS = ["/a.png", "/b.png", "/c.png"]


@pytest.fixture
def predictions() -> Predictions:
    weights = np.array([1, 0.5, 1], dtype=np.float32)
    made = predictions_of(PROBABILITIES, np.array([0, 0, 1]), ("cat", "a/dog"), weights, PATHS)
    return dataclasses.replace(made, logits=made.logits.astype(np.float32))


def test_one_row_per_image_survives_parquet(predictions: Predictions, tmp_path: Path) -> None:
    file = predictions.save(tmp_path / "new" / "predictions.parquet")
    probabilities = from_numpy(predictions.logits).double().softmax(dim=1).float().numpy()
    expected = pd.DataFrame(
        {
            "path": PATHS,
            "label": ["cat", "cat", "a/dog"],
            "predicted": ["cat", "a/dog", "cat"],
            "correct": [True, False, False],
            "probability/cat": probabilities[:, 0],
            "probability/a/dog": probabilities[:, 1],
            "weight": np.array([1, 0.5, 1], dtype=np.float32),
            "sha256": predictions.sha256,
            "logit/cat": predictions.logits[:, 0],
            "logit/a/dog": predictions.logits[:, 1],
        }
    )
    pd.testing.assert_frame_equal(pd.read_parquet(file), expected)
    assert [path.name for path in file.parent.iterdir()] == ["predictions.parquet"]


@pytest.mark.parametrize("weighted", [True, False])
def test_nothing_is_lost_in_the_file(predictions: Predictions, tmp_path: Path, weighted: bool) -> None:
    groups, names = ["day 1", "day 1", "day 2"], ("dog", "dog.b/[c]")
    predictions = dataclasses.replace(predictions, groups=groups, class_names=names)
    predictions = dataclasses.replace(predictions, refused=np.array([True, False, True]))
    if not weighted:
        predictions = dataclasses.replace(predictions, weights=None, refused=None)
    read = Predictions.load(predictions.save(tmp_path / "predictions.parquet"))
    for field in dataclasses.fields(Predictions):
        before, after = getattr(predictions, field.name), getattr(read, field.name)
        if isinstance(before, np.ndarray):
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after, before)
        else:
            assert after == before
    assert score(read, resamples=100) == score(predictions, resamples=100)


def test_no_column_for_what_is_not_known() -> None:
    columns = predictions_of(PROBABILITIES, np.array([0, 0, 1]), ("cat", "dog")).table().columns
    assert not {"weight", "group", "refused"} & set(columns)


def test_scores_say_how_many_are_refused_and_how_accurate_the_others_are() -> None:
    generator = np.random.default_rng(0)
    labels, probabilities = generator.integers(0, 3, 200), generator.dirichlet(np.ones(3), 200)
    probabilities[np.arange(150), labels[:150]] += 1  # the first 150 are answered rightly
    made = predictions_of(probabilities / probabilities.sum(axis=1, keepdims=True), labels, "abc")
    assert not {"refused", "accuracy_accepted"} & score(made, resamples=100).keys()
    refused = np.arange(200) >= 170
    scores = score(dataclasses.replace(made, refused=refused), resamples=400)
    assert scores["refused"].value == pytest.approx(30 / 200)
    half = 1.96 * np.sqrt(0.15 * 0.85 / 200)
    assert (scores["refused"].low, scores["refused"].high) == pytest.approx((0.15 - half, 0.15 + half), abs=0.015)
    right = (made.predicted == labels)[:170]
    alone = scores["accuracy_accepted"]
    assert alone.value == pytest.approx(right.mean())
    assert alone.low < alone.value < alone.high
    assert scores["accuracy"] == score(made, resamples=400)["accuracy"]
    none, all_of_them = (dataclasses.replace(made, refused=np.full(200, one)) for one in (False, True))
    assert score(none, resamples=100)["refused"].high == pytest.approx(0.019, abs=0.001), "Wilson's"
    assert score(none, resamples=100)["accuracy_accepted"].value == scores["accuracy"].value
    assert "accuracy_accepted" not in score(all_of_them, resamples=100)


def test_images_are_resampled_by_their_groups(classifier: Classifier, version: DatasetVersion, tmp_path: Path) -> None:
    found = predict_split(classifier, version, "test")
    assert found.groups is None
    assert found.drawn_groups is None
    table = version.table()
    table["group"] = [f"day {number % 5}" for number in range(len(table))]
    grouped, _ = write_version(tmp_path, "squares", table, version.class_names)
    again = predict_split(classifier, grouped, "test")
    days = table.loc[table["split"] == "test", "group"].tolist()
    assert again.groups == days
    assert again.num_groups == len(set(days)) > 1
    assert again.drawn_groups is not None
    np.testing.assert_array_equal(np.unique(days)[again.drawn_groups], days)
    assert "of 5 groups, which are drawn whole" in notes_on(again, score(again, resamples=100))[1]
    one = dataclasses.replace(again, groups=["day 1"] * len(days))
    assert one.drawn_groups is None  # which shows nothing of other groups
    assert score(one, resamples=100) == score(found, resamples=100) != score(again, resamples=100)
    assert "are of one group: intervals are of other images of it" in notes_on(one, score(one, resamples=100))[1]


def test_a_file_of_another_kind_is_told_apart(predictions: Predictions, tmp_path: Path) -> None:
    predictions.table().to_parquet(tmp_path / "old.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet", encoding="utf-8")
    for name in ("old.parquet", "text.parquet", "missing.parquet"):
        with pytest.raises(UserError, match=f"{name} holds no predictions"):
            Predictions.load(tmp_path / name)


def test_a_split_is_named_by_its_images_and_labels(classifier: Classifier, version: DatasetVersion) -> None:
    found = predict_split(classifier, version, "test")
    again = predict_split(classifier, version, "test", batch_size=7)
    assert found.split_digest == again.split_digest
    assert found.split_digest != predict_split(classifier, version, "validation").split_digest
    assert (found.split, found.dataset, found.bundle_digest) == ("test", "squares", classifier.digest)
    assert found.sha256 == version.samples("test").sha256
