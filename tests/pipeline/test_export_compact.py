"""An export for small devices is kept where it is faster and no worse, and computes what the model does."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from drifting import make_model

from graftline.bundle.compact import CompactFormat, open_onnx, open_openvino
from graftline.bundle.decision import MOST_PROBABLE
from graftline.bundle.layout import bundle_digest
from graftline.bundle.predictor import Predictor
from graftline.bundle.refusal import Refusal
from graftline.bundle.save import add_to_card
from graftline.data.decode import decode_rgb
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.compact import CompactComparison, measure
from graftline.execution import Execution
from graftline.files import write_json
from graftline.pipeline.export import Export, _left_out
from graftline.tracking.tracking import Tracking

NEEDS_OPENVINO = [
    pytest.mark.extras,
    pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is missing: make test-extras installs it"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    bundle = make_model(root, validation=30)
    (summary,) = root.glob("*/summary.json")
    (root / "squares").symlink_to(root)
    add_to_card(bundle, dataset_digest=summary.parent.name)
    return root


@pytest.mark.parametrize(
    "kind",
    [
        "onnx-int8",
        pytest.param("openvino", marks=NEEDS_OPENVINO),
    ],
)
def test_what_is_kept_computes_what_the_model_does(
    place: Path, kind: CompactFormat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """How fast each is differs from machine to machine: here it counts as faster, whatever was measured."""
    monkeypatch.setattr(CompactComparison, "objection", lambda *_: None)
    found = Export(Tracking(), str(place / "bundle"), kind, str(place / kind), directory=str(place)).run(place)
    told = " ".join(capsys.readouterr().out.split())
    assert "30 validation images, one at a time, in turns" in told
    assert found.exported.name == place.name + ("-int8.onnx" if kind == "onnx-int8" else "-openvino")
    assert [file.name for file in (place / kind).iterdir()] == [found.exported.name], "and no float one"
    run = (open_onnx if kind == "onnx-int8" else open_openvino)(found.exported, Execution())
    predictor = Predictor.from_directory(place / "bundle")
    version = DatasetVersion.load(next(place.glob("*/summary.json")).parent)
    paths = version.samples("validation").paths[:6]
    assert run(np.zeros((2, 40, 30, 3), np.uint8)).shape == (2, 3), "batches of any size"
    expected = predictor.predict(paths)
    actual = np.concatenate([run(decode_rgb(path)[None]) for path in paths])
    np.testing.assert_allclose(actual, expected, atol=0.35 if kind == "onnx-int8" else 2e-3)


def test_the_float_one_takes_its_place(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CompactComparison, "objection", lambda *_: "it is slower")
    export = Export(Tracking(), str(place / "bundle"), "onnx-int8", str(place / "slow"), directory=str(place))
    stale = place / "slow" / f"{place.name}-int8.onnx"
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier model")
    found = export.run(place)
    assert found.exported == place / "slow" / f"{place.name}.onnx"
    assert found.facts["format"] == "onnx"
    assert [file.name for file in (place / "slow").iterdir()] == [f"{place.name}.onnx"]
    told = " ".join(capsys.readouterr().out.split())
    assert "onnx-int8 is not kept, as it is slower: the float one is, and " in told
    assert told.count("-int8.onnx, of another time, is removed.") == 1
    assert export.run(place).exported == found.exported
    assert "is removed" not in capsys.readouterr().out


def test_an_image_that_has_gone_is_named(place: Path) -> None:
    version = DatasetVersion.load(next(place.glob("*/summary.json")).parent)
    export = Export(Tracking(), str(place / "bundle"), "onnx-int8", str(place / "gone"), directory=str(place))
    for split in ("train", "validation"):
        gone = Path(version.samples(split).paths[0])
        gone.rename(gone.with_suffix(".away"))
        with pytest.raises(UserError, match=rf"^{gone} could be read at ingest but not now"):
            export.run(place)
        gone.with_suffix(".away").rename(gone)
    assert list((place / "gone").iterdir()) == []


def test_what_a_file_of_the_network_does_not_tell_is_said(place: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(place / "bundle", tmp_path / "pets" / "bundle"))
    content = json.loads((bundle / "bundle.json").read_text())
    content["decision"] = {"set_threshold": 0.2}
    content["digest"] = bundle_digest(content, content["files"])
    write_json(bundle / "bundle.json", content)
    found = Export(Tracking(), str(bundle), "onnx", str(tmp_path)).run(tmp_path)
    assert ("left out", "sets of classes") in found.table
    plain = Export(Tracking(), str(place / "bundle"), "onnx", str(tmp_path)).run(tmp_path)
    assert "left out" not in dict(plain.table)
    predictor = Predictor.from_directory(bundle)
    refusing = replace(predictor, refusal=Refusal(np.ones((1, 1), np.float32), 1, 0.5, 0.01))
    assert _left_out(refusing) == "whether an image is none of the classes and sets of classes"


def test_without_the_training_images(place: Path) -> None:
    with pytest.raises(UserError, match=r"was trained on is not in .*: give Export\.directory"):
        Export(Tracking(), str(place / "bundle"), "onnx-int8", str(place / "none"), directory="nowhere").run(place)
    with pytest.raises(UserError, match=r"^Export\.max_loss is 0, it must be above 0"):
        Export(Tracking(), str(place / "bundle"), max_loss=0)


def made_up(ratio: float, lost: int, count: int = 400) -> CompactComparison:
    times = np.random.default_rng(0).uniform(9, 11, (count, 2)) * (1, ratio)
    right = np.ones((count, 2), bool)
    right[:lost, 1] = False
    return CompactComparison(times, right, 0.1)


def test_what_is_surely_faster_and_surely_no_worse_is_kept() -> None:
    assert made_up(0.8, 0).objection(0.02) is None
    assert made_up(0.8, 2).objection(0.02) is None, "half a point, 1.6 at most"
    assert "not surely faster here (10" in str(made_up(1.05, 0).objection(0.02))
    assert "may be 3.6 points lower, and 2 are allowed" in str(made_up(0.8, 9).objection(0.02))
    assert "points lower" in str(made_up(0.8, 0, count=20).objection(0.02)), "too few images to be sure"


def test_both_are_asked_in_turns() -> None:
    asked: list[str] = []

    def of(name: str, answer: int) -> "object":
        def run(pixels: np.ndarray) -> np.ndarray:
            asked.append(name)
            return np.eye(2, dtype=np.float32)[[answer]]

        return run

    images = [(np.zeros((2, 2, 3), np.uint8), label) for label in (0, 1, 1)]
    found = measure(of("float", 0), of("small", 1), images, MOST_PROBABLE, lambda _: None)  # type: ignore[arg-type]
    assert asked == ["float", "small", "float", "small", "small", "float", "float", "small"]
    assert found.right.tolist() == [[True, False], [False, True], [False, True]]
    assert found.largest_difference == 1
