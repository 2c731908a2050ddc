"""A bundle's calibration and decision: every predictor applies them, and the digest names them."""

import base64
import json
import shutil
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from bundles import change_description, tabulate

from graftline.bundle.calibration import Calibration
from graftline.bundle.decision import Decision
from graftline.bundle.engines import EngineName
from graftline.bundle.layout import read_description
from graftline.bundle.predictor import Predictor, softmax
from graftline.bundle.refusal import Refusal, neighbor_distances, unit
from graftline.bundle.save import change_answers
from graftline.bundle.verify import verify_bundle
from graftline.errors import UserError
from graftline.serving.answers import classify
from graftline.serving.package import save_model

# the bundle's random network has logits of some ten thousand
TEMPERATURE = Calibration(temperature=10_000.0)
VECTOR = Calibration(scales=(5e-5, 2e-4, 1e-4), biases=(0.3, -0.2, 0.0))


@pytest.fixture(params=["temperature", "vector"])
def calibration(request: pytest.FixtureRequest) -> Calibration:
    return {"temperature": TEMPERATURE, "vector": VECTOR}[request.param]


@pytest.fixture
def calibrated(bundle: Path, tmp_path: Path, calibration: Calibration) -> Path:
    copy = shutil.copytree(bundle, tmp_path / "calibrated")
    change_answers(copy, calibration)
    return copy


def golden(bundle: Path) -> list[Path]:
    return sorted((bundle / "golden" / "images").glob("real_*"))


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_both_engines_apply_it(bundle: Path, calibrated: Path, calibration: Calibration, engine: EngineName) -> None:
    plain, ours = Predictor.from_directory(bundle, engine), Predictor.from_directory(calibrated, engine)
    assert ours.calibration == calibration
    images = golden(bundle)
    raw, logits = plain.logits(images), ours.logits(images)
    np.testing.assert_allclose(logits, calibration.apply(raw), rtol=1e-6)
    assert np.abs(logits - raw).max() > 0.01
    np.testing.assert_array_equal(ours.predict(images), softmax(logits))
    np.testing.assert_array_equal(ours.predict_readable(images)[0], softmax(logits))
    with_embeddings, embeddings = ours.logits_and_embeddings(images)
    np.testing.assert_allclose(with_embeddings, logits, atol=1e-5)
    np.testing.assert_allclose(embeddings, plain.logits_and_embeddings(images)[1])


def test_the_digest_names_it(bundle: Path, calibrated: Path, calibration: Calibration) -> None:
    before = read_description(bundle)["digest"]
    after = read_description(calibrated)["digest"]
    assert before != after == Predictor.from_directory(calibrated).digest
    assert change_answers(calibrated, Calibration(temperature=3.0)) not in (before, after)
    assert change_answers(calibrated, Calibration()) == before
    assert change_answers(calibrated, calibration) == after
    changed = {**(calibration.to_dict() or {}), "temperature": 1.1}
    change_description(calibrated, calibration=changed)
    with pytest.raises(UserError, match=r"bundle\.json is not what was saved"):
        Predictor.from_directory(calibrated)


def test_a_bundle_of_format_3_has_the_digest_it_had(bundle: Path, tmp_path: Path) -> None:
    old = shutil.copytree(bundle, tmp_path / "old")
    change_description(old, format=3, calibration=None)
    assert "calibration" not in json.loads((old / "bundle.json").read_text())
    ours = Predictor.from_directory(old)
    assert ours.digest == Predictor.from_directory(bundle).digest
    assert ours.calibration == Calibration()


def test_it_is_verified_with_its_calibration(calibrated: Path, calibration: Calibration) -> None:
    assert verify_bundle(calibrated).problem is None
    values = calibrated / "golden" / "values.npz"
    with np.load(values) as arrays:
        kept = dict(arrays)
    before = softmax(calibration.apply(kept["logits"]))
    kept["logits"][0, 0] += 16
    np.savez(values, **kept)
    verification = verify_bundle(calibrated)
    assert verification.steps[-1].largest == pytest.approx(16, rel=0.01)
    change = np.abs(softmax(calibration.apply(kept["logits"])) - before).max()
    assert 0 < verification.largest_probability_change == pytest.approx(change, rel=0.05)


def test_tables_and_served_models_are_calibrated(bundle: Path, calibrated: Path, tmp_path: Path) -> None:
    images = golden(bundle)
    ours = Predictor.from_directory(calibrated)
    expected = softmax(ours.calibration.apply(Predictor.from_directory(bundle).logits(images)))
    table = tabulate(ours, (bundle / "golden" / "images").iterdir())
    chosen = table[table["path"].str.contains("real_")].filter(like="probability/")
    np.testing.assert_allclose(chosen.to_numpy(), expected, atol=1e-5)

    encoded = [base64.b64encode(image.read_bytes()).decode() for image in images]
    answer = classify(ours, encoded)
    np.testing.assert_allclose(answer.filter(like="probability/").to_numpy(), expected, atol=1e-5)
    save_model(calibrated, tmp_path / "model", images[0].read_bytes())
    served = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(pd.DataFrame({"image": encoded}))
    pd.testing.assert_frame_equal(served, answer)


@pytest.mark.parametrize(
    "decision", [Decision(thresholds=(1e-9, 0.5, 0.5)), Decision(costs=((0.0, 9, 9), (0, 9, 9), (0, 9, 9)))]
)
def test_answers_are_the_decisions(bundle: Path, tmp_path: Path, decision: Decision) -> None:
    copy = shutil.copytree(bundle, tmp_path / "decided")
    digest = change_answers(copy, TEMPERATURE, decision)
    ours = Predictor.from_directory(copy)
    assert ours.digest == digest != change_answers(copy, TEMPERATURE, Decision())
    assert (ours.calibration, ours.decision) == (TEMPERATURE, decision)
    images = golden(bundle)
    probabilities = ours.predict(images)
    assert set(probabilities.argmax(axis=1)) != {0}
    answer = classify(ours, [base64.b64encode(image.read_bytes()).decode() for image in images])
    table = tabulate(ours, (bundle / "golden" / "images").iterdir())
    table = table[table["path"].str.contains("real_")]
    for one in (answer, table):
        assert set(one["class"]) == {"ant"}
        np.testing.assert_allclose(one["probability"], probabilities[:, 0], atol=1e-6)
        np.testing.assert_allclose(one["probability/cat"], probabilities[:, 2], atol=1e-6)


def test_sets_are_given(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "sets")
    change_answers(copy, TEMPERATURE, Decision(set_threshold=0.15))
    ours, images = Predictor.from_directory(copy), golden(bundle)
    answer = classify(ours, [base64.b64encode(image.read_bytes()).decode() for image in images])
    probabilities = ours.predict(images)
    for text, row in zip(answer["set"], probabilities, strict=True):
        order = np.argsort(-row)
        assert json.loads(text) == [ours.class_names[number] for number in order if row[number] >= 0.15]
    assert (probabilities >= 0.15).sum(axis=1).max() > 1
    table = tabulate(ours, (bundle / "golden" / "images").iterdir())
    assert table[table["path"].str.contains("real_")]["set"].tolist() == answer["set"].tolist()
    save_model(copy, tmp_path / "model", images[0].read_bytes())
    outputs = mlflow.pyfunc.load_model(str(tmp_path / "model")).metadata.signature.outputs
    assert outputs.input_names()[-1] == "set"


def test_images_far_from_the_training_images_are_refused(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "refusing")
    images, plain = golden(bundle), Predictor.from_directory(bundle)
    embeddings = plain.logits_and_embeddings(images)[1]
    references = unit(embeddings[:2])
    distances = neighbor_distances(references, embeddings, 1)
    change_answers(copy, refusal=Refusal(references, 1, float(distances[2]) / 2, 0.05))
    images_folder = tmp_path / "images"
    images_folder.mkdir()
    for image in images:
        shutil.copy(image, images_folder)
    (images_folder / "text.txt").write_text("no image")
    expected = [False, False, True]
    for engine in ("onnx", "torch"):
        ours = Predictor.from_directory(copy, engine)
        assert ours.digest != plain.digest
        table = tabulate(ours, images_folder.iterdir())
        assert table["refused"].tolist() == [*expected, pd.NA]
        np.testing.assert_allclose(table["probability"][:3], plain.predict(images).max(axis=1), atol=1e-5)
    assert "refused" not in tabulate(plain, images_folder.iterdir())
    encoded = [base64.b64encode(image.read_bytes()).decode() for image in images]
    assert classify(ours, encoded)["refused"].tolist() == expected
    save_model(copy, tmp_path / "model", images[0].read_bytes())
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert served.predict(pd.DataFrame({"image": encoded}))["refused"].tolist() == expected
    assert served.metadata.signature.outputs.input_names()[-1] == "refused"
    (copy / "references.npy").write_bytes(b"x")
    with pytest.raises(UserError, match=r"references\.npy is not what was saved"):
        Predictor.from_directory(copy)
