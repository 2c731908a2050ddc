"""What a trained model tells of itself: its card, and explanations of its answers."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from workplace import TINY, Ran, Workplace

from graftline.bundle.ensemble import save_ensemble
from graftline.bundle.layout import find_damage, read_description
from graftline.bundle.predictor import Predictor
from graftline.data.folds import without_fold
from graftline.data.version import DatasetVersion
from graftline.evaluation import explanation
from graftline.pipeline.cli import compose

COLORED = ("data=folder", "data.path=photos", "data.license=cc0-1.0")


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace], color_folder: Path) -> Workplace:
    workplace = make_workplace("explain")
    shutil.copytree(color_folder, workplace.root / "photos")
    return workplace


@pytest.fixture(scope="module")
def trained(place: Workplace) -> Ran:
    ran = place.run("train", *COLORED, *TINY)
    assert ran.code == 0, ran.output
    return ran


@pytest.fixture(scope="module")
def explained(place: Workplace, trained: Ran) -> Ran:
    """Copies of two training images, explained."""
    (place.root / "copies").mkdir()
    table = pd.read_parquet(next(place.root.glob("data/photos/*/manifest.parquet")))
    for number, path in enumerate(table[table["split"] == "train"]["path"].iloc[[3, 17]]):
        shutil.copyfile(place.root / "photos" / path, place.root / "copies" / f"{number} {Path(path).name}")
    ran = place.run("explain", f"bundle={trained.directory}", "images=copies", "accelerator=cpu")
    assert ran.code == 0, ran.output
    return ran


def test_the_card_holds_the_numbers_of_the_run(trained: Ran) -> None:
    bundle = trained.directory / "bundle"
    card = ModelCard.load(bundle / "README.md", ignore_metadata_errors=False)
    assert card.data.library_name == "timm"
    assert card.data.license == "other"
    assert card.data.license_name == "images-cc0-1.0"  # the network began with random weights
    assert "image-classification" in card.data.tags
    results = {one.metric_type: one.metric_value for one in card.data.eval_results}
    metrics = trained.result["metrics"]
    assert results == {name: metrics[name]["value"] for name in card.data.metrics}
    assert set(results) == {name for name in metrics if "/" not in name}
    described = read_description(bundle)
    shown = f"{100 * metrics['accuracy']['value']:.1f} %"
    for text in (shown, trained.result["run_id"], described["digest"], trained.result["dataset_digest"], "cc0-1.0"):
        assert text in card.text
    assert "Weights that the training began with: none were used" in card.text
    assert "Freeze: " in card.text
    assert not find_damage(bundle, described)
    assert Predictor.from_directory(bundle).digest == described["digest"]


def test_the_card_is_the_description_of_the_version(place: Workplace, trained: Ran) -> None:
    text = ModelCard.load(trained.directory / "bundle" / "README.md").text.strip()
    version = place.mlflow.get_model_version("photos", "1")
    assert version.description == text
    assert len(text) <= 5000


def test_the_code_in_the_card_runs(trained: Ran, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = shutil.copytree(trained.directory / "bundle", tmp_path / "bundle")
    Image.new("RGB", (40, 40), (40, 60, 200)).save(bundle / "photo.jpg")
    monkeypatch.chdir(bundle)
    ours, plain = re.findall(r"```python\n(.*?)```", (bundle / "README.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(ours, found)
    assert found["probabilities"].shape == (1, 3)
    exec(plain, found)
    calibrated = found["predictor"].calibration.apply(found["logits"].detach().numpy())
    np.testing.assert_allclose(calibrated, found["predictor"].logits(["photo.jpg"]), atol=1e-4)


def test_the_nearest_training_image_of_a_copy_is_the_image(explained: Ran) -> None:
    table = pd.read_csv(explained.directory / "explanations.csv")
    assert len(table) == 2
    for path, near, label in table[["path", "near_1", "near_label_1"]].astype(str).to_numpy().tolist():
        assert Path(near).name == Path(path).name.partition(" ")[2]
        assert label == Path(near).parent.name
    distances = table[["distance_1", "distance_2", "distance_3"]].to_numpy(np.float64)
    assert distances[:, 0] == pytest.approx(0, abs=1e-2)
    assert (np.diff(distances, axis=1) >= 0).all()
    with Image.open(explained.directory / "explanations.png") as picture:
        assert picture.width > 1000


def test_mistakes_are_explained_again_alike(place: Workplace, trained: Ran) -> None:
    once, again = (
        place.run("explain", f"bundle={trained.directory}", "split=train", "number=3", "accelerator=cpu")
        for _ in range(2)
    )
    assert once.code == 0, once.output
    assert "the surest first" in once.output
    for name in ("explanations.csv", "explanations.png"):
        assert (once.directory / name).read_bytes() == (again.directory / name).read_bytes()
    assert "Running the frozen network" not in again.output  # the activations are there
    table = pd.read_csv(once.directory / "explanations.csv")
    near = table[["near_1", "near_2", "near_3"]]
    assert not near.isna().any(axis=None)
    assert not near.eq(table["path"], axis=0).any(axis=None), "an image is no example of itself"


@pytest.mark.long
def test_an_image_that_was_left_out_of_the_training_is_no_example(place: Workplace, trained: Ran) -> None:
    part = place.run("train", *COLORED, *TINY, "train.fold=1/2", "trainer.max_epochs=1", "tracking.register=false")
    told = place.run("explain", f"bundle={part.directory}", "split=validation", "accelerator=cpu")
    assert told.code == 0, told.output
    version = DatasetVersion.load(next((place.root / "data/photos").glob("*/manifest.parquet")).parent)
    seen = set(without_fold(version, "1/2").samples("train").paths)
    table = pd.read_csv(told.directory / "explanations.csv")
    assert set(table[["near_1", "near_2", "near_3"]].stack()) <= seen


def test_what_is_no_image_is_left_out_by_name(place: Workplace, trained: Ran) -> None:
    folder = place.root / "mixed"
    folder.mkdir()
    (folder / "a-note.txt").write_text("These are photos.")
    explain = ["explain", f"bundle={trained.directory}", "images=mixed", "number=1", "accelerator=cpu"]
    told = place.run(*explain)
    assert told.code == 1
    assert "images has none that can be read: " in told.output
    assert "a-note.txt (" in told.output
    Image.new("RGB", (40, 40), (40, 60, 200)).save(folder / "photo.png")
    told = place.run(*explain)
    assert told.code == 0, told.output
    assert "a-note.txt (" in told.output
    table = pd.read_csv(told.directory / "explanations.csv")
    assert [Path(path).name for path in table["path"]] == ["photo.png"]


def test_what_cannot_be_explained_is_told_first(place: Workplace, trained: Ran) -> None:
    told = place.run("explain", f"bundle={trained.directory}", "number=0")
    assert told.code == 1
    assert "number is 0, but must be at least 1 and at most 50." in told.output
    ensemble = save_ensemble(place.root / "ensemble", [trained.directory / "bundle"] * 2, (0.5, 0.5), "1", {})
    told = place.run("explain", f"bundle={ensemble}")
    assert told.code == 1
    assert "is an ensemble: explain one of its members, such as" in " ".join(told.output.split())


def test_why_places_were_covered_is_told(
    place: Workplace,
    trained: Ran,
    explained: Ran,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Grad-CAM has a map here, which the network contradicts."""
    monkeypatch.chdir(place.root)
    monkeypatch.setattr(explanation, "CONTRADICTION", -2.0)
    assert explained.code == 0, "its images lie there"
    compose("explain", [f"bundle={trained.directory}", "images=copies", "accelerator=cpu"]).run()
    told = " ".join(capsys.readouterr().out.split())
    assert "In 2 of 2 images places were covered one after the other (occlusion)" in told
    assert "or is surer without the places that Grad-CAM shows." in told
