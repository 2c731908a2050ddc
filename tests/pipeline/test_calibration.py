"""A trained bundle is calibrated by classifying validation images, where nobody knows their logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from manifest import manifest

from conftest import COLORS, paint
from graftline.backbones.backbone import Backbone
from graftline.bundle.layout import read_description
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import save_bundle
from graftline.data.version import DatasetVersion
from graftline.data.version_writing import write_version
from graftline.evaluation.decision import LowestCost, MostProbable
from graftline.evaluation.predictions import predict_split
from graftline.files import sha256_file
from graftline.pipeline.cli import compose
from graftline.pipeline.training.calibration import Wanted, adjust


def make_version(folder: Path, validation: int, training: int = 3) -> DatasetVersion:
    paths, count = [], validation + training
    for number in range(count):
        paths.append(folder / f"{number}.png")
        paint(list(COLORS.values())[number % 3], number, size=16).save(paths[-1])
    table = manifest(
        [list(COLORS)[number % 3] for number in range(count)],
        ["validation"] * validation + ["train"] * training,
        path=[str(path) for path in paths],
        sha256=[sha256_file(path) for path in paths],
        width=16,
        height=16,
    )
    return write_version(folder, "squares", table, tuple(sorted(COLORS)))[0]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A network with random weights, that is sure of what it does not know."""
    torch.manual_seed(0)
    graft = Backbone("test_efficientnet", weights="none", image_size=32).build(3)
    with torch.no_grad():
        graft.network.get_classifier().weight.mul_(1000)  # type: ignore[operator]
    names, preprocessing = sorted(COLORS), graft.preprocessing
    return save_bundle(
        tmp_path / "bundle",
        graft.network,
        timm_name="test_efficientnet",
        class_names=names,
        preprocessing=preprocessing,
        card={"dataset": "squares"},
    )


def test_it_is_calibrated_by_what_it_gives(bundle: Path, tmp_path: Path) -> None:
    version = make_version(tmp_path, validation=60)
    before = Predictor.from_directory(bundle)
    raw = predict_split(before, version, "validation").logits
    adjusted = adjust(before, bundle, version, None, Wanted(), seed=0)
    predictor, fit = adjusted.predictor, adjusted.calibration
    assert fit.sentence.startswith("The probabilities are calibrated by")
    described, loaded = read_description(bundle), Predictor.from_directory(bundle)
    assert predictor.digest == loaded.digest == described["digest"] != before.digest
    assert predictor.calibration == loaded.calibration == fit.calibration
    assert described["card"]["calibration"]["sentence"] == fit.sentence
    assert described["card"]["dataset"] == "squares"
    after = predict_split(predictor, version, "validation")
    np.testing.assert_allclose(after.logits, fit.calibration.apply(raw), rtol=1e-5, atol=1e-5)
    given = adjusted.validation
    assert given is not None
    np.testing.assert_allclose(given.logits, after.logits, rtol=1e-5, atol=1e-5)
    assert (given.bundle_digest, given.split_digest) == (predictor.digest, after.split_digest)
    assert (given.sha256, given.decision) == (after.sha256, after.decision)


def test_what_it_gives_for_a_part_of_the_validation_images_is_not_kept_for_all(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftline.pipeline.training.calibration.MOST_CALIBRATED", 60)
    adjusted = adjust(
        Predictor.from_directory(bundle), bundle, make_version(tmp_path, validation=90), None, Wanted(), seed=0
    )
    assert adjusted.calibration.sentence.startswith("The probabilities are calibrated by")
    assert adjusted.validation is None


def test_a_decision_that_another_one_replaces_is_told_no_longer(bundle: Path, tmp_path: Path) -> None:
    version, before = make_version(tmp_path, validation=60), Predictor.from_directory(bundle)
    for rule, told in ((LowestCost({"red": {"blue": 3.0}}), "an image costs "), (MostProbable(), "")):
        adjust(before, bundle, version, None, Wanted(rule), seed=0)
        sentence = read_description(bundle)["card"]["decision"]["sentence"]
        assert told in sentence
        assert bool(sentence) == bool(told)


def test_what_the_training_weighed_is_not_taken_back(bundle: Path, tmp_path: Path) -> None:
    for key in ("class_weights", "sample_weights"):
        stage: Any = compose("train", [f"train.{key}=true"]).stage
        assert stage._wanted == Wanted(weighed=True)
    adjusted = adjust(
        Predictor.from_directory(bundle), bundle, make_version(tmp_path, 60), None, Wanted(weighed=True), 0
    )
    assert not adjusted.calibration.calibration.scales
    assert adjusted.calibration.sentence.endswith("; as the training was weighed, no bias of a class is fitted.")


def test_what_it_refuses_is_chosen_and_kept(bundle: Path, tmp_path: Path) -> None:
    version = make_version(tmp_path, validation=60, training=30)
    before = Predictor.from_directory(bundle)
    adjusted = adjust(before, bundle, version, None, Wanted(refuse=0.1), seed=0)
    assert adjusted.refusal is not None
    assert "from 30 training images than all but 10 %" in adjusted.sentences[-1]
    loaded = Predictor.from_directory(bundle)
    assert loaded.digest == adjusted.predictor.digest != before.digest
    refused = loaded.predict_refusing(version.samples("validation").paths)[1]
    assert refused is not None
    assert refused.sum() in (5, 6)  # of 60, floor(61 / 10)
    assert read_description(bundle)["card"]["refusal"]["left_out"].keys() == COLORS.keys()


def test_three_images_calibrate_nothing(bundle: Path, tmp_path: Path) -> None:
    before = Predictor.from_directory(bundle)
    adjusted = adjust(before, bundle, make_version(tmp_path, validation=3), None, Wanted(), seed=0)
    predictor = adjusted.predictor
    assert len(adjusted.sentences) == 1
    assert "3 validation images are too few" in adjusted.sentences[0]
    assert predictor.digest == before.digest == Predictor.from_directory(bundle).digest
