"""Two processes on the CPU: one run, one output directory, and the numbers of a single process."""

import math
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from seen_images import read_seen, train_noting_images
from workplace import TINY, Workplace

from graftline.augment.draw import Draw
from graftline.augment.policy import EvalTransform
from graftline.bundle.predictor import Predictor
from graftline.data.decode import decode_rgb
from graftline.data.version import DatasetVersion


@pytest.mark.parametrize("inputs", ["live", "cached", "adapted"])
def test_two_processes(workplace: Workplace, color_folder: Path, tmp_path: Path, inputs: str) -> None:
    overrides = ["data=folder", f"data.path={color_folder}", *TINY, "trainer=ddp_cpu"]
    if inputs != "live":  # a frozen trunk wants weights: a file that stands for pretrained ones
        network = timm.create_model("test_efficientnet", num_classes=1000)
        torch.save(network.state_dict(), tmp_path / "weights.pth")
        given = ["backbone.weights=file", f"backbone.file={tmp_path / 'weights.pth'}", "freeze=all_but_head"]
        overrides = [*overrides, *given, "features=cached"]
        if inputs == "adapted":  # float16 would be 1e-5 off
            overrides += ["freeze.batchnorm=adapted", "features.precision=float32"]
        overrides = list({line.partition("=")[0]: line for line in overrides}.values())
    start = workplace.run_command if inputs == "live" else workplace.run
    ran = start("train", *overrides)
    assert ran.code == 0, ran.output

    assert not re.search("Warning|recommended|strides", ran.output), ran.output
    assert len(list(workplace.root.glob("outputs/train/*"))) == 1
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    (run,) = workplace.mlflow.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")]
    assert steps == [2, 4], "18 images a process in batches of 16"

    version = DatasetVersion.load(workplace.root / "data" / "colors0" / ran.result["dataset_digest"])
    bundle = ran.directory / "bundle"
    if inputs == "adapted":
        kept = load_file(ran.directory / "checkpoints" / "batchnorm.safetensors")
        saved = load_file(bundle / "model.safetensors")
        assert kept
        assert all(torch.equal(buffer, saved[name]) for name, buffer in kept.items())
        assert not torch.equal(kept["bn1.running_mean"], network.bn1.running_mean)
    expected = unpadded(bundle, version, "validation")
    best = Predictor.from_directory(bundle).card["validation"]
    assert best["val/loss"] == pytest.approx(expected[0], abs=1e-6)
    assert best["val/accuracy"] == pytest.approx(expected[1], abs=1e-6)
    test = unpadded(bundle, version, "test")
    assert ran.result["metrics"]["accuracy"]["value"] == pytest.approx(test[1], abs=1e-6)


def test_two_runs_of_several_phases_with_two_processes(
    workplace: Workplace, color_folder: Path, tmp_path: Path
) -> None:
    """Each phase is a fit of its own, and each run starts processes of its own."""
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pth")
    weights = ["backbone.weights=file", f"backbone.file={tmp_path / 'weights.pth'}"]
    rule = [
        "freeze=gradual",
        "freeze.head_epochs=1",
        "freeze.step_epochs=1",
        "freeze.step_groups=3",
        "freeze.until=0.0",
    ]
    own = ["trainer=ddp_cpu", "trainer.max_epochs=3", "features=auto", "seed=0,1", *weights, *rule]
    given = ["data=folder", f"data.path={color_folder}", *TINY, *own]
    ran = workplace.run("train", *{line.partition("=")[0]: line for line in given}.values())
    assert ran.code == 0, ran.output
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    runs = workplace.mlflow.search_runs([experiment.experiment_id], "tags.`graftline.stage` = 'train'")
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.status for run in children] == ["FINISHED"] * 2
    for run in children:
        steps = [metric.step for metric in workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")]
        assert steps == [2, 4, 6], "18 images a process in batches of 16, in three phases"


def test_a_process_that_fails_ends_the_run(workplace: Workplace, color_folder: Path, tmp_path: Path) -> None:
    """It is not the first one, which does not wait for it, and marks the run."""
    shutil.copytree(color_folder, tmp_path / "colors")
    given = ["data=folder", f"data.path={tmp_path / 'colors'}", *TINY, "trainer=ddp_cpu", "trainer.max_epochs=4000"]
    process = workplace.start("train", *{line.partition("=")[0]: line for line in given}.values())
    while not list(workplace.root.glob("outputs/train/*/dataset.json")):  # read, but not yet decoded for training
        assert process.code is None, process.output
        time.sleep(0.05)
    (summary,) = workplace.root.glob("data/colors/*/findings.json")
    path = Path(DatasetVersion.load(summary.parent).samples("validation").paths[1])  # they take turns: the second one's
    path.unlink()
    assert process.wait(60) == 1, process.output
    output = process.output
    assert f"{path} could be read at ingest but not now" in output.replace("\n", " ")
    assert "Another process of this training has ended, for the reason that it gave" in output
    assert "Traceback" not in output
    experiment = workplace.mlflow.get_experiment_by_name("colors")
    assert experiment is not None
    (run,) = workplace.mlflow.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"


def unpadded(bundle: Path, version: DatasetVersion, split: str) -> tuple[float, float]:
    """Return log loss and accuracy of the bundle's network, in one process, one image at a time."""
    samples = version.samples(split)
    network = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
    transform = EvalTransform(Predictor.from_directory(bundle).preprocessing)
    losses, hits = [], []
    for path, label in zip(samples.paths, samples.labels, strict=True):
        with torch.inference_mode():
            image = torch.from_numpy(transform(decode_rgb(path), Draw(0, 0)))[None]
            probabilities = network(image).double().softmax(dim=1)[0].numpy()
        losses.append(-math.log(probabilities[label]))
        hits.append(int(probabilities.argmax()) == label)
    return float(np.mean(losses)), float(np.mean(hits))


def test_two_processes_lower_a_rate_that_diverges_together(workplace: Workplace, color_folder: Path) -> None:
    """Three times, as no rate is low enough here; then both end, and say why once."""
    diverging = ["optim=sgd", "freeze.learning_rate=1e30", "trainer.gradient_clip_val=null"]
    tiny = [word for word in TINY if not word.startswith("optim.lr")]
    ran = workplace.run("train", "data=folder", f"data.path={color_folder}", *tiny, *diverging, "trainer=ddp_cpu")
    assert ran.code == 1, ran.output
    told = " ".join(ran.output.split())
    assert told.count("begins anew with a third of that") == 2
    assert told.count("lower optim.lr") == 1


@pytest.mark.parametrize(("before", "after", "images"), [(2, 1, 36), (1, 2, 36), (2, 3, 37), (3, 2, 37)])
def test_a_resume_with_other_processes_sees_each_image_of_the_rest_once(
    before: int, after: int, images: int, workplace: Workplace, color_folder: Path, tmp_path: Path
) -> None:
    """All of them are killed after two batches of 2 images each in the second epoch; 37 images are a prime number."""
    own = ["trainer=ddp_cpu", f"trainer.devices={before}", "trainer.max_epochs=4000", "train.patience=null"]
    own += ["train.batch_size=2", "train.checkpoint_minutes=1e-9"]
    own += ["data.split.test=0.2", f"data.split.train={0.6 if images == 36 else 0.61}"]
    words = {line.partition("=")[0]: line for line in ["data=folder", f"data.path={color_folder}", *TINY, *own]}
    (noted := tmp_path / "noted").mkdir()
    steps_per_epoch = images // (2 * before)
    train = partial(train_noting_images, noted, steps_per_epoch + 2, ["train", *words.values()])
    assert workplace.run_function(train).code == -signal.SIGKILL
    seen = read_seen(noted)
    assert seen[0] == list(range(images))
    assert len(seen[1]) == 4 * before
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    (run,) = workplace.mlflow.search_runs([experiment.experiment_id])

    resumed = [f"train.resume={run.info.run_id}", f"trainer.devices={after}", "trainer.max_epochs=3"]
    ran = workplace.run_function(partial(train_noting_images, noted, None, ["train", *resumed]))
    assert ran.code == 0, ran.output
    assert read_seen(noted) == {epoch: list(range(images)) for epoch in range(3)}
    history = workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")
    rest, later = (images - 4 * before) // (2 * after), images // (2 * after)
    assert [one.step for one in history] == [
        steps_per_epoch,
        steps_per_epoch + 2 + rest,
        steps_per_epoch + 2 + rest + later,
    ]
