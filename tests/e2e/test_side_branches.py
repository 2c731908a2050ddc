"""GoogLeNet with its side branches in two processes: each of its parameters gets its gradient, and the run a bundle."""

import math
import re
from pathlib import Path

import timm
from workplace import TINY, Workplace

import graftline.backbones.zoo  # noqa: F401  # registers googlenet with timm

CHANGES = {"backbone": "googlenet", "train.batch_size": "8", "trainer.max_epochs": "1", "trainer": "ddp_cpu"}


def test_googlenet_in_two_processes(workplace: Workplace, colour_folder: Path) -> None:
    settings = {**dict(line.split("=", 1) for line in TINY), **CHANGES}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    ran = workplace.run("train", "data=folder", f"data.path={colour_folder}", *overrides)
    assert ran.code == 0, ran.output
    assert not re.search("Warning|find_unused", ran.output), ran.output
    experiment = workplace.mlflow.get_experiment_by_name("colours0")
    assert experiment is not None
    (run,) = workplace.mlflow.search_runs([experiment.experiment_id])
    losses = {name: run.data.metrics[name] for name in ("train/loss", "val/loss")}
    assert all(math.isfinite(loss) for loss in losses.values()), losses
    network = timm.create_model(f"local-dir:{ran.directory / 'bundle'}", pretrained=True)
    assert network.side_branches == ("side1", "side2")
    assert network.num_classes == 3
