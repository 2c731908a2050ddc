"""One training from images to a registered model, and what it leaves behind."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from bundles import change_description
from torch.utils.flop_counter import FlopCounterMode
from workplace import TINY, Ran, Workplace

from graftline.bundle.odd_images import make_odd_images
from graftline.bundle.predictor import Predictor
from graftline.data.version import DatasetVersion
from graftline.evaluation.predictions import Predictions


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Workplace:
    return make_workplace("train")


@pytest.fixture(scope="module")
def trained(place: Workplace, color_folder: Path) -> Ran:
    ran = place.run("train", "data=folder", f"data.path={color_folder}", *TINY, "seed=0")
    assert ran.code == 0, ran.output
    return ran


def test_the_output_directory_holds_exactly_this(trained: Ran) -> None:
    files = {str(path.relative_to(trained.directory)) for path in trained.directory.rglob("*") if path.is_file()}
    golden = {file for file in files if file.startswith("bundle/golden/images/")}
    assert {file for file in golden if "/real_" in file} == {
        f"bundle/golden/images/real_{number:02}.png"
        for number in range(9)  # the whole validation split
    }
    assert {file for file in files - golden if not file.startswith("outbox/")} == {
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
        "bundle/README.md",
        "bundle/bundle.json",
        "bundle/config.json",
        "bundle/drift.npz",
        "bundle/golden/golden.json",
        "bundle/golden/values.npz",
        "bundle/model.onnx",
        "bundle/model.safetensors",
        "checkpoints/best.ckpt",
        "checkpoints/freeze_check.json",
        "checkpoints/last.ckpt",
        "checkpoints/phase.json",
        "cost.json",
        "dataset.json",
        "freeze.json",
        "log.txt",
        "report.html",
        "result.json",
        "test/figures/confidences.svg",
        "test/figures/confusion_matrix.svg",
        "test/figures/precision_recall_curves.svg",
        "test/figures/coverage_curve.svg",
        "test/figures/reliability_diagram.svg",
        "test/figures/roc_curves.svg",
        "test/predictions.parquet",
    } | {file for file in files if file == "test/figures/confident_mistakes.svg"}  # only where there are mistakes


def test_result_json_keeps_its_contract(trained: Ran, place: Workplace) -> None:
    result = trained.result
    assert {"stage", "seconds", "dataset_digest", "run_id", "model_uri", "metrics"} <= set(result)
    assert result["stage"] == "train"
    accuracy = result["metrics"]["accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    version = DatasetVersion.load(place.root / "data" / "colors0" / result["dataset_digest"])
    assert {split: sum(classes.values()) for split, classes in version.counts().items()} == {
        "train": 36,
        "validation": 9,
        "test": 15,
    }


def test_the_run_is_finished_and_says_all(trained: Ran, place: Workplace) -> None:
    run = place.mlflow.get_run(trained.result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["backbone.name"] == "test_efficientnet"
    assert run.data.params["trainer.max_epochs"] == "2"
    assert run.data.metrics["test/accuracy"] == trained.result["metrics"]["accuracy"]["value"]
    assert len(place.mlflow.get_metric_history(run.info.run_id, "val/loss")) == 2
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.digest == trained.result["dataset_digest"]
    assert {"graftline.freeze", "graftline.git.dirty", "mlflow.source.git.commit"} <= set(run.data.tags)
    artifacts = {artifact.path for artifact in place.mlflow.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "data", "figures", "report.html", "requirements", "test"} <= artifacts


def test_the_run_says_what_its_network_costs(trained: Ran, place: Workplace) -> None:
    network = timm.create_model("test_efficientnet", num_classes=3)
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, 32, 32))
    run_id = trained.result["run_id"]
    metrics = place.mlflow.get_run(run_id).data.metrics
    assert metrics["cost/parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert metrics["cost/gmacs"] == counter.get_total_flops() / 2e9
    assert metrics["cost/activation_mb"] > 0
    assert [artifact.path for artifact in place.mlflow.list_artifacts(run_id, "cost")] == ["cost/cost.json"]
    cost = json.loads((trained.directory / "cost.json").read_text())
    assert cost["image_size"] == [32, 32]
    assert sum(stage["macs"] for stage in cost["stages"]) == cost["macs"] == counter.get_total_flops() // 2


def test_the_model_is_registered_and_classifies(
    trained: Ran, place: Workplace, color_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = trained.result["model_uri"]
    assert uri == "models:/colors0/1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place.root / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model(uri)
    import base64

    images = [path.read_bytes() for path in sorted(color_folder.glob("red/*.png"))[:3]]
    answers = model.predict(pd.DataFrame({"image": [base64.b64encode(image).decode() for image in images]}))
    assert list(answers["class"].isin(["blue", "green", "red"])) == [True] * 3
    assert not list(Path(place.root / "mlartifacts").rglob("*.pkl")), "nothing is pickled"
    # the model's few modules of graftline are first on this process's path now, and on that of those it starts
    child = [sys.executable, "-c", "import graftline.training.running_mean as found; print(found.__file__)"]
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(child, env=path, check=True, capture_output=True)


@pytest.fixture(scope="module")
def evaluated(trained: Ran, place: Workplace, color_folder: Path) -> Ran:
    ran = place.run(
        "evaluate",
        f"bundle={trained.directory / 'bundle'}",
        "data=folder",
        f"data.path={color_folder}",
        "evaluation.resamples=100",
        "tracking.system_metrics=false",
    )
    assert ran.code == 0, ran.output
    return ran


def test_evaluating_the_bundle_gives_the_metrics_of_the_training(trained: Ran, evaluated: Ran) -> None:
    assert evaluated.result["metrics"] == trained.result["metrics"]
    before, after = (Predictions.load(path) for path in prediction_files(trained, evaluated))
    np.testing.assert_array_equal(after.logits, before.logits)
    assert (after.split_digest, after.bundle_digest) == (before.split_digest, before.bundle_digest)


def test_an_evaluation_is_tracked_beside_the_training(trained: Ran, evaluated: Ran, place: Workplace) -> None:
    before, after = (place.mlflow.get_run(ran.result["run_id"]) for ran in (trained, evaluated))
    assert after.info.status == "FINISHED"
    assert after.info.experiment_id == before.info.experiment_id
    names = [name for name in before.data.metrics if name.startswith("test/")]
    assert {name: after.data.metrics[name] for name in names} == {name: before.data.metrics[name] for name in names}
    assert after.data.tags["graftline.stage"] == "evaluate"
    for tag in ("graftline.bundle_digest", "graftline.test_digest", "graftline.dataset_digest"):
        assert after.data.tags[tag] == before.data.tags[tag]
    assert after.data.tags["graftline.bundle_digest"] == Predictor.from_directory(trained.directory / "bundle").digest
    assert after.data.params["evaluation.resamples"] == "100"
    assert after.inputs is not None
    assert {inputs.dataset.digest for inputs in after.inputs.dataset_inputs} == {trained.result["dataset_digest"]}
    artifacts = {artifact.path for artifact in place.mlflow.list_artifacts(after.info.run_id)}
    assert {"config.yaml", "figures", "report.html", "test"} <= artifacts


def prediction_files(trained: Ran, evaluated: Ran) -> tuple[Path, Path]:
    return trained.directory / "test" / "predictions.parquet", evaluated.directory / "predictions.parquet"


def test_verify_finds_a_bundle_whole_and_a_changed_one_not(trained: Ran, place: Workplace, tmp_path: Path) -> None:
    ran = place.run("verify", f"bundle={trained.directory / 'bundle'}")
    assert ran.code == 0, ran.output
    assert ran.result["largest_probability_change"] == 0
    assert ran.result["golden_images"] == 9 + len(make_odd_images())

    changed = shutil.copytree(trained.directory / "bundle", tmp_path / "bundle")
    preprocessing = json.loads((changed / "bundle.json").read_text())["preprocessing"]
    change_description(changed, preprocessing={**preprocessing, "interpolation": "nearest"})
    ran = place.run("verify", f"bundle={changed}")
    assert ran.code == 1
    rows = {line.split()[0]: line.split()[1] for line in ran.output.splitlines() if line and not line.startswith(" ")}
    assert rows["decode"] == "0"
    assert int(rows["resize"]) > 30
    assert ran.output.splitlines()[-1].startswith("bundle.json of this bundle is not what was saved")


def test_a_registered_model_is_a_bundle_too(trained: Ran, place: Workplace, color_folder: Path) -> None:
    ran = place.run("predict", f"model={trained.result['model_uri']}", f"images={color_folder / 'red'}")
    assert ran.code == 0, ran.output
    assert ran.result["bundle_digest"] == Predictor.from_directory(trained.directory / "bundle").digest
    assert ran.result["images"] == 20


def test_plain_timm_loads_the_bundle(trained: Ran, color_folder: Path) -> None:
    bundle = trained.directory / "bundle"
    network = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config, is_training=False)
    from PIL import Image

    path = next(color_folder.glob("green/*.png"))
    with torch.inference_mode():
        expected = network(transform(Image.open(path).convert("RGB"))[None]).softmax(dim=1).numpy()
    actual = Predictor.from_directory(bundle).predict([path])
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_predict_writes_a_table(trained: Ran, place: Workplace, color_folder: Path) -> None:
    ran = place.run("predict", f"model={trained.directory / 'bundle'}", f"images={color_folder}")
    assert ran.code == 0, ran.output
    table = pd.read_csv(place.root / ran.result["predictions"] / "part-00000.csv")
    assert len(table) == 60
    assert table["error"].isna().all()
    assert table["class"].isin(["blue", "green", "red"]).all()


def test_the_same_seed_gives_the_same_metrics_and_no_new_version(
    trained: Ran, place: Workplace, color_folder: Path
) -> None:
    again = place.run("train", "data=folder", f"data.path={color_folder}", *TINY, "seed=0")
    assert again.code == 0, again.output
    assert again.result["metrics"] == trained.result["metrics"]
    assert again.result["dataset_digest"] == trained.result["dataset_digest"]
    assert "nothing is new" in again.output
    assert again.result["model_uri"] == "models:/colors0/2"


def test_the_log_is_readable(trained: Ran) -> None:
    lines = trained.output.splitlines()
    assert not [line for line in lines if "Warning" in line]
    assert len(lines) < 50
    assert (trained.directory / "log.txt").read_text().strip()
