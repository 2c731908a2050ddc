"""What runs a model on ONNX Runtime asks for no torch: it need not be there, and nobody waits for its import."""

import os
import shutil
import subprocess
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import onnxruntime
import pandas as pd
import pytest
from http_server import photo, text
from workplace import Workplace

from graftline.bundle.predictor import Predictor
from graftline.data.decode import decode_rgb
from graftline.errors import UserError
from graftline.pipeline.bundles.source import find_source
from graftline.pipeline.export import ENDINGS, Export, ExportFormat
from graftline.serving.origin import BundleFolder, Origin
from graftline.tracking.client import connect
from graftline.tracking.tracking import Tracking

NO_TORCH = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm", "pytorch_lightning", "albumentations"}:
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, NotInstalled())
"""


def run_without_torch(place: Workplace, stage: str, *overrides: str) -> str:
    (place.root / "path").mkdir(exist_ok=True)
    (place.root / "path" / "sitecustomize.py").write_text(NO_TORCH, encoding="utf-8")
    environment = place.environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(place.root / "path"), environment["PYTHONPATH"]])
    command = place.command(stage, *overrides)
    done = subprocess.run(command, cwd=place.root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_predict(workplace: Workplace, bundle: Path) -> None:
    told = run_without_torch(workplace, "predict", f"model={bundle}", f"images={bundle / 'golden' / 'images'}")
    assert "in the folder images" in told
    assert list(workplace.root.glob("predictions/images-*/part-00000.csv"))


@pytest.mark.parametrize("kind", ["onnx", "docker"])
def test_export(workplace: Workplace, bundle: Path, predictor: Predictor, kind: str) -> None:
    named = bundle.parent.name
    told = run_without_torch(workplace, "export", f"model={bundle}", f"format={kind}")
    if kind == "docker":
        assert (workplace.root / "exports" / f"{named}-docker" / "Dockerfile").exists()
        assert f"docker build --tag graftline-server exports/{named}-docker" in told
        return
    assert "a probability differs by" in told
    session = onnxruntime.InferenceSession(str(workplace.root / "exports" / f"{named}.onnx"))
    pixels = decode_rgb(photo(1))
    found = session.run(["probabilities"], {"pixels": pixels[None]})[0]
    np.testing.assert_allclose(found, predictor.predict([pixels]), atol=1e-3)


def test_an_mlflow_model_is_that_which_is_registered(workplace: Workplace, bundle: Path, predictor: Predictor) -> None:
    ran = workplace.run("export", f"model={bundle}", "format=mlflow")
    assert ran.code == 0, ran.output
    assert "Downloading" not in ran.output
    folder = workplace.root / ran.result["exported"]
    answer = mlflow.pyfunc.load_model(str(folder)).predict(pd.DataFrame({"image": [text(photo(1))]}))
    np.testing.assert_allclose(answer["probability"], predictor.predict([photo(1)]).max(axis=1), rtol=1e-6)


@pytest.mark.parametrize("kind", ["onnx", "docker", "mlflow"])
def test_an_export_takes_the_place_of_its_own_kind_only(
    bundle: Path, tmp_path: Path, kind: ExportFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "exports" / f"{bundle.parent.name}{ENDINGS[kind]}"
    (tmp_path / "elsewhere").mkdir()
    target.parent.mkdir()
    target.symlink_to(tmp_path / "elsewhere")  # of onnx, a folder
    with pytest.raises(UserError, match=r"is to be written to exports/.*: move it away, or change Export\.out\.$"):
        Export(Tracking(), str(bundle), kind).run(tmp_path)
    assert target.is_symlink()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_name_where_no_model_could_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^'nope' is no folder here, and there is no tracking database sqlite:///"):
        Export(Tracking(), "nope").run(tmp_path)


def test_a_folder_of_images_does_not_hide_the_model_of_its_name(
    empty_database: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `make train data=folder data.path=photos`, whose model is called photos."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(empty_database, "mlflow.db")
    tracking = Tracking(uri="sqlite:///mlflow.db")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^'photos' is a folder here without a bundle, and not a model .*there: none"):
        find_source("photos", tracking)
    connect(tracking.uri).create_registered_model("photos")
    shutil.copytree(bundle, tmp_path / "model" / "artifacts" / "bundle")
    connect(tracking.uri).create_model_version("photos", (tmp_path / "model").as_uri())
    assert find_source("photos", tracking).find() == Origin("models:/photos/1", 1, "unknown")
    assert find_source("./photos", tracking) == BundleFolder(Path("photos"), "photos"), "a path is a path"
    for root in ("of_a_run/bundle", "a_bundle"):
        shutil.copytree(bundle, tmp_path / root)
        name = root.partition("/")[0]
        assert find_source(name, tracking) == BundleFolder(Path(root), name)
