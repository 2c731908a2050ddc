"""A head that reads all stages goes the whole way: trained on kept activations, saved, verified, explained."""

import json
from pathlib import Path

import pytest
from tiny_weights import write_weights
from workplace import TINY, Workplace

from graftline.bundle.layout import read_description
from graftline.bundle.predictor import Predictor

CHANGED = ("backbone=", "backbone.weights", "freeze", "features", "optim.lr", "trainer.max_epochs")


@pytest.mark.parametrize("network", ["test_resnet", "test_vit"])
def test_a_model_with_a_head_that_reads_all_stages(workplace: Workplace, color_folder: Path, network: str) -> None:
    write_weights(workplace.root / "weights", [network])
    ran = workplace.run(
        "train",
        *(line for line in TINY if not line.startswith(CHANGED)),
        *("data=folder", f"data.path={color_folder}", "tracking.register=false", "trainer.max_epochs=5"),
        *(f"backbone={network}", "backbone.head=stages", "freeze=all_but_head", "features=cached"),
    )
    assert ran.code == 0, ran.output
    bundle = ran.directory / "bundle"
    described = read_description(bundle)
    assert described["timm_name"] == f"{network}+stages"
    assert described["card"]["freeze_plan"]["learning_rate"] == 0.002
    assert described["card"]["arguments"]["body"] == network
    run = workplace.mlflow.get_run(ran.result["run_id"])
    assert run.info.run_name == f"{network}+stages head 32px seed0"
    assert json.loads((bundle / "config.json").read_text())["architecture"] == "stages"
    assert "import graftline.backbones.zoo" in (bundle / "README.md").read_text()
    assert ran.result["metrics"]["accuracy"]["value"] == 1.0

    predicted = Predictor.from_directory(bundle).predict([color_folder / "red" / "00.png"])
    assert described["class_names"][predicted[0].argmax()] == "red"
    images = ("explain", f"bundle={bundle}", f"images={color_folder / 'red'}", "accelerator=cpu")
    for stage in (("verify", f"bundle={bundle}", "engine=torch"), images):
        done = workplace.run(*stage)
        assert done.code == 0, done.output
