"""One ONNX file does what the predictor does with a decoded image, in ONNX Runtime alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from bundles import change_description
from onnx import TensorProto, helper
from PIL import Image

from graftline.augment.preprocess import Preprocessing
from graftline.bundle import export
from graftline.bundle.calibration import Calibration
from graftline.bundle.ensemble import load_predictor, save_ensemble
from graftline.bundle.export import ANSWER, PIXELS, PROBABILITIES, TOLERANCE, export_onnx
from graftline.bundle.layout import bundle_digest, read_description
from graftline.bundle.onnx_graph import Graph
from graftline.bundle.onnx_preprocess import preprocess
from graftline.errors import UserError

SPREAD = 1.0e4  # of the test network's logits
HALF = (0.5, 0.4, 0.3)
SIZES = ((64, 64), (333, 500), (500, 333), (52, 76), (700, 900), (7, 5), (1, 1), (10, 3000), (2000, 9))


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (H, W, 3) pixels of a photograph's detail."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height))
    return (np.asarray(coarse) + generator.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)


def open_file(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def change_answers(bundle: Path, to: Path, **entries: object) -> Path:
    """Return a copy of a bundle with other entries in its description, and the digest that belongs to them."""
    copy = Path(shutil.copytree(bundle, to))
    change_description(copy, **entries)
    content = read_description(copy)
    change_description(copy, digest=bundle_digest(content, content["files"]))
    return copy


@pytest.fixture(scope="module")
def soft(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with a temperature at which its probabilities lie between 0 and 1."""
    logits = load_predictor(bundle).logits([photo(90, 120, seed) for seed in range(8)])
    calibration = {"temperature": SPREAD}
    assert 0.5 < logits.std() / SPREAD < 2
    return change_answers(bundle, tmp_path_factory.mktemp("soft") / "soft", calibration=calibration)


def preprocessing_alone(way: Preprocessing) -> onnxruntime.InferenceSession:
    """Return the nodes of the preprocessing alone."""
    graph = Graph()
    graph("Identity", preprocess(graph, PIXELS, way), output="input")
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        graph.nodes,
        "preprocess",
        [value(PIXELS, TensorProto.UINT8, [None, None, None, 3])],
        [value("input", TensorProto.FLOAT, None)],
        graph.initializers,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "hamming"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("size", "channels"), [((64, 64), 3), ((48, 64), 1)])
def test_it_resizes_as_pillow_does(interpolation: str, crop_mode: str, size: tuple[int, int], channels: int) -> None:
    """To the last bit, but for very long images; a pixel in 10,000 may be a tie that rounding decides."""
    mean = HALF[:channels]
    way = Preprocessing(size, mean, mean, interpolation, crop_mode=crop_mode, channels=channels)
    session = preprocessing_alone(way)
    for height, width in SIZES:
        image = photo(height, width)
        expected, actual = way(image), session.run(None, {PIXELS: image[None]})[0][0]
        levels = np.abs(actual - expected) * 255 * np.reshape(mean, (-1, 1, 1))
        is_plain = 1 / 8 < width / height < 8
        assert levels.max() < 1.01, (height, width)
        assert (levels > 1e-3).mean() < (4e-4 if is_plain else 0.02), (height, width)


def test_the_file_gives_the_predictors_probabilities(soft: Path, tmp_path: Path) -> None:
    predictor = load_predictor(soft)
    written = export_onnx(soft, tmp_path / "model.onnx")
    assert written.largest_difference < 1e-5 < TOLERANCE
    session, images = open_file(written.file), [photo(*size, seed) for seed, size in enumerate(SIZES)]
    expected = predictor.predict(images)
    for image, row in zip(images, expected, strict=True):
        probabilities, answer = session.run([PROBABILITIES, ANSWER], {PIXELS: image[None]})
        np.testing.assert_allclose(probabilities[0], row, atol=TOLERANCE)
        assert answer[0] == row.argmax()
    batch = np.stack([photo(90, 120, seed) for seed in range(3)])
    np.testing.assert_allclose(session.run([PROBABILITIES], {PIXELS: batch})[0], predictor.predict(batch), atol=1e-5)


def test_the_file_says_what_it_is(soft: Path, tmp_path: Path) -> None:
    file = export_onnx(soft, tmp_path / "model.onnx").file
    onnx.checker.check_model(onnx.load(file), full_check=True)
    properties = open_file(file).get_modelmeta().custom_metadata_map
    assert json.loads(properties["class_names"]) == ["ant", "bee/wasp", "cat"]
    assert properties["digest"] == read_description(soft)["digest"]
    assert float(properties["largest_difference"]) <= float(properties["tolerance"]) == TOLERANCE
    assert str(Path.home()) not in str(onnx.load(file)), "nothing of the machine that wrote it"


@pytest.mark.parametrize(
    "answers",
    [
        {"calibration": {"temperature": 3 * SPREAD}},
        {"calibration": {"scales": [1 / SPREAD, 0.5 / SPREAD, 2 / SPREAD], "biases": [0.0, -1.0, 0.5]}},
        {"decision": {"thresholds": [0.05, 0.9, 0.05]}},
        {"decision": {"costs": [[0, 1, 50], [1, 0, 1], [1, 9, 0]]}},
    ],
)
def test_calibration_and_decision_are_in_it(soft: Path, tmp_path: Path, answers: dict[str, object]) -> None:
    other = change_answers(soft, tmp_path / "other", **answers)
    session, predictor = open_file(export_onnx(other, tmp_path / "model.onnx").file), load_predictor(other)
    batch = np.stack([photo(90, 120, seed) for seed in range(8)])
    expected = predictor.predict(batch)
    assert expected.max(axis=1).mean() < 0.95, "else all would be alike"
    probabilities, answer = session.run([PROBABILITIES, ANSWER], {PIXELS: batch})
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert answer.tolist() == predictor.decision.answer(expected).tolist()


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_an_ensemble_is_one_file_too(soft: Path, tmp_path: Path, average: str) -> None:
    other = change_answers(soft, tmp_path / "other", calibration={"temperature": 0.5 * SPREAD})
    ensemble = save_ensemble(
        tmp_path / "ensemble",
        [soft, other],
        [0.3, 0.7],
        "1",
        {},
        average=average,  # type: ignore[arg-type]
    )
    session = open_file(export_onnx(ensemble, tmp_path / "model.onnx").file)
    batch = np.stack([photo(90, 120, seed) for seed in range(4)])
    expected = load_predictor(ensemble).predict(batch)
    np.testing.assert_allclose(session.run([PROBABILITIES], {PIXELS: batch})[0], expected, atol=1e-5)


def test_the_logits_of_one_member_with_all_the_share_are_calibrated_as_they_are(soft: Path, tmp_path: Path) -> None:
    """A scale for each class tells logits apart that stand for the same probabilities."""
    calibration = Calibration(scales=(1.0, 0.5, 2.0), biases=(0.0, -1.0, 0.5))
    ensemble = save_ensemble(tmp_path / "ensemble", [soft, soft], [0.0, 1.0], "1", {}, calibration)
    assert export_onnx(ensemble, tmp_path / "model.onnx").largest_difference < 1e-5


def test_what_an_onnx_file_cannot_do_is_refused(
    soft: Path, old_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = save_ensemble(tmp_path / "crops", [soft], [1.0], "mirror", {})
    preprocessing = {**read_description(soft)["preprocessing"], "interpolation": "nearest"}
    nearest = change_answers(soft, tmp_path / "nearest", preprocessing=preprocessing)
    for one, told in (
        (crops, "averages over the crops 'mirror', which an ONNX file cannot cut: take the Docker export"),
        (nearest, "resizes images by 'nearest', which an ONNX file cannot do as Pillow does"),
        (old_bundle, "has no golden images"),
    ):
        with pytest.raises(UserError, match=told):
            export_onnx(one, tmp_path / "out" / "model.onnx")
    calibrate = export._calibrate
    monkeypatch.setattr(
        export, "_calibrate", lambda graph, one, logits: calibrate(graph, replace(one, temperature=1), logits)
    )
    with pytest.raises(UserError, match=r"The ONNX file would change a probability by 0\.\d+, more than 0.001"):
        export_onnx(soft, tmp_path / "out" / "model.onnx")
    assert not list((tmp_path / "out").iterdir())
