"""A training scores its test images by their cached activations; an evaluation of its bundle classifies them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workplace import TINY, Workplace

from conftest import paint_mislabeled
from graftline.bundle.decision import MOST_PROBABLE
from graftline.bundle.images import ImageLike
from graftline.bundle.layout import read_description
from graftline.bundle.predictor import Predictor
from graftline.evaluation.evaluation import CHECKED_IMAGES
from graftline.evaluation.predictions import Predictions
from graftline.pipeline.cli import compose
from graftline.pipeline.training.result import TrainResult

TRAIN = (
    *TINY,
    "backbone=tf_efficientnet_lite0",
    "backbone.weights=packaged",
    "freeze=all_but_head",
    "features=cached",
    "tracking.register=false",
)
SPLIT = ("data=folder", "data.split.test=0.4", "data.split.validation=0.35")


@contextmanager
def images_run() -> Iterator[list[int]]:
    """Yield a list of how many images predictors were given by each call."""
    numbers, run = list[int](), Predictor._run

    def counted(self: Predictor, images: Iterable[ImageLike], *others: Any) -> list[np.ndarray]:
        given = list(images)
        numbers.append(len(given))
        return run(self, given, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "_run", counted)
        yield numbers


@pytest.mark.long
def test_both_say_the_same(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace.root)
    data = [f"data.path={paint_mislabeled(tmp_path / 'images')}", *SPLIT]
    decision = ["decision=recall", "decision.class_name=red", "decision.recall=0.9", "refuse=0.1", "sets=0.9"]
    with images_run() as runs:
        trained = compose("train", [*data, *TRAIN, *decision]).run(tmp_path / "train")
    assert isinstance(trained, TrainResult)
    assert max(runs) <= CHECKED_IMAGES < min(sum(one.values()) for one in trained.version.counts().values())
    output = capfd.readouterr().out
    assert "the bundle's logits differ by" in output
    assert "The probabilities are calibrated by" in output
    assert "The largest probability is answered, that of “red” times" in output
    assert "Sets of classes that hold the true one for 90 % of new images" in output
    assert trained.metrics["set_coverage"]["value"] > 0.75
    assert "are marked as refused; of a class that was left out" in output
    assert "Embedding train images" not in output
    assert "Classifying the validation images" not in output
    bundle = f"bundle={tmp_path / 'train' / 'bundle'}"
    evaluated = compose("evaluate", [*data, bundle, "evaluation.resamples=100", "reuse=false"]).run(
        tmp_path / "evaluate"
    )
    assert "Classifying the test images: 7" in capfd.readouterr().out

    described = read_description(tmp_path / "train" / "bundle")
    assert described["calibration"] is not None
    assert described["card"]["calibration"]["num_images"] >= 50
    ahead = Predictions.load(tmp_path / "train" / "test" / "predictions.parquet")
    after = Predictions.load(tmp_path / "evaluate" / "predictions.parquet")
    np.testing.assert_allclose(ahead.logits, after.logits, atol=1e-5)
    assert ahead.sha256 == after.sha256
    assert ahead.decision == after.decision != MOST_PROBABLE
    np.testing.assert_array_equal(ahead.predicted, after.predicted)
    assert ahead.refused is not None
    assert after.refused is not None
    np.testing.assert_array_equal(ahead.refused, after.refused)
    assert evaluated.metrics["refused"]["value"] == pytest.approx(ahead.refused.mean())
    right = (ahead.predicted == ahead.labels)[~ahead.refused]
    assert evaluated.metrics["accuracy_accepted"]["value"] == pytest.approx(right.mean())
    assert ahead.bundle_digest == after.bundle_digest
    for name, score in evaluated.metrics.items():
        assert trained.metrics[name] == pytest.approx(score, abs=1e-5), name
    capfd.readouterr()
    reused = compose("evaluate", [*data, bundle, "evaluation.resamples=100"]).run(tmp_path / "reused")
    assert "Classifying the test images" not in capfd.readouterr().out
    assert reused.metrics["refused"] == evaluated.metrics["refused"]
