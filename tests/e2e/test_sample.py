"""What a newcomer does first: the sample data set with the defaults."""

from pathlib import Path

from workplace import Workplace

from graftline.data.version import DatasetVersion


def test_the_defaults_classify_solar_cells(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path)  # as in a fresh clone: there is no tracking database yet
    short = "freeze.trial_images=200"  # the defaults but for that, as one core takes a minute or two for 700 images
    ran = workplace.run("train", short)
    assert "Creating the tracking database" in ran.output
    assert ran.code == 0, ran.output
    result = ran.result
    assert result["metrics"]["accuracy"]["value"] >= 0.85
    assert {"accuracy", "accuracy_weighted", "auroc", "precision/defective"} <= set(result["metrics"])
    assert result["model_uri"] == "models:/elpv/1"
    run = workplace.mlflow.get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    version = DatasetVersion.load(workplace.root / "data" / "elpv" / result["dataset_digest"])
    assert sum(version.counts()["test"].values()) == 656
    assert "found by trials, validation log loss" in ran.result["freeze"]
    assert ran.result["freeze"].endswith("all 8 layer groups below the head frozen, 30 epochs")
    assert "The frozen network runs on ONNX Runtime." in ran.output
    assert (
        "Freeze check: 294 frozen tensors are bit for bit what they were, 2 of 2 trained ones had gradients."
        in ran.output
    )

    again = workplace.run("train", short)  # dataset version and activations are there: the same numbers, sooner
    assert again.result["metrics"] == result["metrics"]
    assert "Running the frozen network" not in again.output
    assert "Epochs, blocks.3 to the head" in ran.output
    assert "Epochs, " not in again.output  # that the head is enough is known

    bundle = again.directory / "bundle"
    assert len(list((bundle / "golden" / "images").glob("real_*"))) == 16
    verified = workplace.run("verify", f"bundle={bundle}")
    assert verified.code == 0, verified.output
    assert verified.result["largest_probability_change"] == 0
