"""The stage learning-curve as a user runs it, on a tiny network."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from workplace import Workplace

from graftline.data.version import DatasetVersion
from graftline.pipeline.runs.stage_summaries import find_summaries

NETWORK = (
    "backbone=test_efficientnet",
    "backbone.weights=none",
    "backbone.image_size=32",
    "tracking.system_metrics=false",
    "accelerator=cpu",
)


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Workplace:
    """A workplace with 400 images of two colors that are not easily told apart."""
    workplace = make_workplace("learning_curve")
    generator = np.random.default_rng(0)
    for name, red in (("pale", 120), ("red", 140)):
        (workplace.root / "photos" / name).mkdir(parents=True)
        for number in range(200):
            color = np.array([generator.normal(red, 15), 120, 120])
            pixels = (color + generator.normal(0, 20, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(workplace.root / "photos" / name / f"{number}.png")
    return workplace


@pytest.fixture(scope="module")
def ran(place: Workplace) -> dict[str, Any]:
    ran = place.run("learning-curve", "data=folder", "data.path=photos", "seeds=3", "resamples=100", *NETWORK)
    assert ran.code == 0, ran.output
    return {**ran.result, "output": ran.output, "directory": ran.directory}


def test_it_says_what_twice_the_labels_would_bring(ran: dict[str, Any]) -> None:
    assert ran["stage"] == "learning-curve"
    assert ran["sizes"] == [21, 30, 42, 60, 85, 120, 170, 240]
    gain = ran["metrics"]["gain/times_2"]
    assert 0 <= gain["low"] <= gain["value"] <= gain["high"] <= 1
    assert f"{100 * gain['value']:+.1f} [{100 * gain['low']:.1f}, {100 * gain['high']:.1f}] points" in ran["output"]
    assert "from up to 120 labels, 240 were expected to bring" in ran["output"]
    assert "next" in ran["output"]


def test_the_run_has_the_curve(ran: dict[str, Any], place: Workplace) -> None:
    note = place.mlflow.get_run(ran["run_id"]).data.tags["mlflow.note.content"]
    gain = ran["metrics"]["gain/times_2"]
    told = f"{100 * gain['value']:+.1f} [{100 * gain['low']:.1f}, {100 * gain['high']:.1f}] points"
    assert note.startswith(f"**Twice the labels: {told} of accuracy**")
    assert f"| 2 | 480 | {told} |" in note
    assert "from up to 120 labels, 240 were expected to bring" in note
    assert "learning-curve data=folder" in note
    table = pd.read_csv(ran["directory"] / "learning_curve.csv")
    np.testing.assert_allclose(table.iloc[:, 1:].mean(axis=1), ran["accuracy"], atol=1e-5)
    history = place.mlflow.get_metric_history(ran["run_id"], "learning_curve/accuracy")
    assert {point.step: pytest.approx(point.value, abs=1e-5) for point in history} == dict(
        zip(ran["sizes"], ran["accuracy"], strict=True)
    )
    run = place.mlflow.get_run(ran["run_id"])
    assert run.data.tags["graftline.stage"] == "learning-curve"
    assert run.info.run_name == ran["run_name"] == "learning curve of test_efficientnet"
    assert "learning_curve/gain_of_twice" in run.data.metrics
    artifacts = {file.path for file in place.mlflow.list_artifacts(ran["run_id"], "learning_curve")}
    assert artifacts == {"learning_curve/learning_curve.csv", "learning_curve/learning_curve.png"}


def test_a_report_takes_the_curve_of_its_own_network_and_names_it(
    ran: dict[str, Any], place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another network's curve of the same images is newer."""
    newer = ran["directory"].with_name("newer")
    shutil.copytree(ran["directory"], newer)
    of_another = json.loads((newer / "result.json").read_text(encoding="utf-8")) | {"backbone": "resnet10t"}
    (newer / "result.json").write_text(json.dumps(of_another), encoding="utf-8")
    monkeypatch.chdir(place.root)
    version = DatasetVersion.load(next(place.root.glob(f"data/*/{ran['dataset_digest']}")))
    own = ("test_efficientnet", "test_efficientnet.r160_in1k")
    for backbone, shown in {**dict.fromkeys(own, own[0]), "": "resnet10t", "alexnet": "resnet10t"}.items():
        (summary,) = find_summaries(version, backbone=backbone)
        assert summary.sentences[0].startswith(f"Heads on {shown} at 32 px: twice the labels would bring +")
    of_earlier_code = {key: of_another[key] for key in of_another.keys() - {"backbone", "image_size_px"}}
    (newer / "result.json").write_text(json.dumps(of_earlier_code), encoding="utf-8")
    for backbone, told in {"test_efficientnet": "Heads on test_efficientnet", "": "Twice", "alexnet": "Twice"}.items():
        (summary,) = find_summaries(version, backbone=backbone)
        assert summary.sentences[0].startswith(told)
    shutil.rmtree(newer)


def test_too_few_images_leave_no_run(place: Workplace, color_folder: Path) -> None:
    before = len(place.mlflow.search_experiments())
    ran = place.run("learning-curve", "data=folder", f"data.path={color_folder}", *NETWORK)
    assert ran.code == 1
    assert "there are 9: give data.split.validation a share" in ran.output
    assert len(place.mlflow.search_experiments()) == before
    ran = place.run("learning-curve", "seeds=1", *NETWORK)
    assert ran.code == 1
    assert "seeds is 1" in ran.output
