"""How image files become pixels is one value: of ingest, preview, training, evaluation, prediction and serving."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from workplace import TINY

from graftline.bundle.predictor import Predictor
from graftline.bundle.verify import verify_bundle
from graftline.data.decode import DecodeSettings, Decoding
from graftline.errors import UserError
from graftline.pipeline.cli import compose
from graftline.pipeline.training.result import TrainResult
from graftline.serving.package import save_model

tifffile = pytest.importorskip("tifffile", reason="the extra 'tiff' reads bands")
pytest.importorskip("imagecodecs", reason="the extra 'tiff' reads bands")

DECODE = ["data.decode.bands=[3,2,1]", "data.decode.range=[0,4000]", "data.max_pixels=2000"]


def write_tiles(root: Path, seed: int = 0) -> Path:
    """Five bands of 12 bits in files of 16, of which the first tells the classes apart, and pictures of 8 bits."""
    for label, first in (("crop", 900), ("forest", 3_000)):
        (root / label).mkdir(parents=True)
        for number in range(20):
            rng = np.random.default_rng([first, number, seed])
            tile = rng.integers(0, 4_000, (32, 32, 5)).astype(np.uint16)
            tile[:, :, 0] = first + rng.integers(0, 100, (32, 32))
            tifffile.imwrite(root / label / f"{number}.tif", tile, photometric="minisblack", planarconfig="contig")
        picture = np.full((32, 32, 3), (first // 16, 120, 120 + seed), np.uint8)
        Image.fromarray(picture).save(root / label / "picture.png")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> tuple[TrainResult, Path, list[str]]:
    """A training, its folder and the data set's settings."""
    folder = tmp_path_factory.mktemp("bands")
    shutil.copyfile(empty_database, folder / "mlflow.db")
    data = ["data=folder", f"data.path={write_tiles(folder / 'tiles')}", *DECODE]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = compose("train", [*data, *TINY, "trainer.max_epochs=6", "tracking.register=false"]).run(folder / "run")
    assert isinstance(result, TrainResult)
    return result, folder, data


def run(stage: str, overrides: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)
    return compose(stage, overrides).run(folder / stage)


def test_the_bundle_carries_it(trained: tuple[TrainResult, Path, list[str]]) -> None:
    result, folder, _ = trained
    assert result.metrics["accuracy"]["value"] > 0.8  # the first band tells the classes apart, no other does
    predictor = Predictor.from_directory(folder / "run" / "bundle")
    assert predictor.decoding.settings == DecodeSettings(bands=(3, 2, 1), range=(0, 4_000))
    assert (predictor.decoding.max_pixels, predictor.decoding.extras) == (2_000, ("tiff",))
    assert verify_bundle(folder / "run" / "bundle").problem is None


def test_prediction_reads_the_same_bands_and_keeps_to_the_limit(
    trained: tuple[TrainResult, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, _ = trained
    images = folder / "new"
    images.mkdir()
    for label in ("crop", "forest"):
        shutil.copyfile(folder / "tiles" / label / "0.tif", images / f"{label}.tif")
    Image.new("RGB", (50, 50)).save(images / "large.png")
    found = run("predict", [f"model={folder / 'run' / 'bundle'}", f"images={images}"], folder, monkeypatch)
    (part,) = found.predictions.glob("part-*.csv")
    table = pd.read_csv(part)
    assert table["class"].tolist()[:2] == ["crop", "forest"]
    assert table["error"].tolist()[2] == "50 x 50 are more than 2,000 pixels"


def test_evaluation_and_preview_read_the_same(
    trained: tuple[TrainResult, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, folder, data = trained
    bundle = f"bundle={folder / 'run' / 'bundle'}"
    plain = [setting for setting in data if setting not in DECODE]
    for settings in (data, plain):  # where they are not given again, the bundle knows them
        evaluated = run("evaluate", [bundle, *settings, "evaluation.resamples=100"], folder, monkeypatch)
        assert evaluated.metrics["accuracy"] == result.metrics["accuracy"]
        assert evaluated.facts["dataset_digest"] == result.version.digest
    preview = run("augment-preview", [*data, "backbone=lenet5", "backbone.weights=none"], folder, monkeypatch)
    assert (folder / "augment-preview" / "preview.png").exists()
    assert preview.facts["dataset_digest"] == evaluated.facts["dataset_digest"]


def test_new_images_are_evaluated_as_the_bundle_decodes_unless_told_otherwise(
    trained: tuple[TrainResult, Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result, folder, _ = trained
    new = write_tiles(folder / "others", seed=1)
    Image.new("RGB", (50, 50)).save(new / "crop" / "large.png")
    given = [f"bundle={result.bundle}", "data=folder", f"data.path={new}", "evaluation.resamples=100"]
    found = run("evaluate", given, folder, monkeypatch).evaluation.predictions
    assert found.decoding == Predictor.from_directory(result.bundle).decoding
    assert len(found.paths) == 42
    assert "large.png" not in " ".join(found.paths)
    assert "not as the bundle was trained" not in capsys.readouterr().out
    settings = ["data.decode.bands=[4,4,4]", "data.decode.range=[0,4000]", "data.max_pixels=9000"]
    other = run("evaluate", [*given, *settings], folder, monkeypatch).evaluation.predictions
    assert other.decoding.settings == DecodeSettings(bands=(4, 4, 4), range=(0, 4_000))
    assert len(other.paths) == 43
    both = [path for path in found.paths if path.endswith(".tif")]
    logits = {path: [one.logits[one.paths.index(path)].tolist() for one in (found, other)] for path in both}
    assert all(one != another for one, another in logits.values()), "they were classified by other bands"
    assert "not as the bundle was trained" in " ".join(capsys.readouterr().out.split())


def test_a_served_model_asks_for_what_reads_such_files(trained: tuple[TrainResult, Path, list[str]]) -> None:
    _, folder, _ = trained
    example = (folder / "tiles" / "crop" / "0.tif").read_bytes()
    save_model(folder / "run" / "bundle", folder / "model", example)
    needed = (folder / "model" / "requirements.txt").read_text()
    assert f"tifffile=={tifffile.__version__}" in needed
    assert "imagecodecs==" in needed
    assert "pydicom" not in needed


def test_a_bundle_of_before_decodes_as_it_did(trained: tuple[TrainResult, Path, list[str]], tmp_path: Path) -> None:
    from graftline.bundle.layout import bundle_digest

    bundle = Path(shutil.copytree(trained[1] / "run" / "bundle", tmp_path / "bundle"))
    content = json.loads((bundle / "bundle.json").read_text())
    del content["decoding"]
    content |= {"format": 2, "digest": bundle_digest(content, content["files"])}
    (bundle / "bundle.json").write_text(json.dumps(content))
    assert Predictor.from_directory(bundle).decoding == Decoding()


def test_bands_without_their_package_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graftline.data.ingest.missing_modules", lambda _: ["tifffile"])
    with pytest.raises(
        UserError, match=r"data.decode.bands is set, but tifffile is not installed.*'graftline\[tiff\]'"
    ):
        compose("ingest", ["data=folder", f"data.path={tmp_path}", *DECODE]).run(tmp_path / "run")
