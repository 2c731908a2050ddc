"""GoogLeNet with its auxiliary heads in two processes: each parameter gets its gradient, and the run a bundle."""

import math
import re
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file
from workplace import TINY, Workplace

import graftline.backbones.zoo  # noqa: F401  # registers googlenet with timm
from graftline.backbones.layers import body_groups, head_parameters

CHANGES = {"backbone": "googlenet", "train.batch_size": "8", "trainer.max_epochs": "1", "trainer": "ddp_cpu"}
FROZEN_GROUPS = 5  # up to 4b: the first branch lies below, the second one above


@pytest.mark.parametrize("trained", ["all", "the last blocks, on cached activations"])
def test_googlenet_in_two_processes(workplace: Workplace, color_folder: Path, tmp_path: Path, trained: str) -> None:
    settings = {**dict(line.split("=", 1) for line in TINY), **CHANGES}
    if trained != "all":
        weights = tmp_path / "weights.safetensors"
        save_file(timm.create_model("googlenet").state_dict(), weights)
        settings |= {"backbone.weights": "file", "backbone.file": str(weights), "features": "cached"}
        settings |= {"freeze": "first_stages", "freeze.number": str(FROZEN_GROUPS)}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    ran = workplace.run("train", "data=folder", f"data.path={color_folder}", *overrides)
    assert ran.code == 0, ran.output
    assert not re.search("Warning|find_unused", ran.output), ran.output
    assert ("auxiliary head 1 lies below the boundary and is left out" in ran.output) == (trained != "all")
    assert "auxiliary head 2" not in ran.output
    experiment = workplace.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    (run,) = workplace.mlflow.search_runs([experiment.experiment_id])
    losses = {name: run.data.metrics[name] for name in ("train/loss", "val/loss")}
    assert all(math.isfinite(loss) for loss in losses.values()), losses
    network = timm.create_model(f"local-dir:{ran.directory / 'bundle'}", pretrained=True)
    assert network.aux_heads == ("side1", "side2")
    assert network.num_classes == 3
    groups = body_groups(network) if trained == "all" else body_groups(network)[FROZEN_GROUPS:]
    expected = sum(map(len, groups)) + len(head_parameters(network))
    counts = [run.data.metrics[f"freeze/{name}"] for name in ("trained_tensors", "tensors_with_gradient")]
    assert counts == [expected, expected]
