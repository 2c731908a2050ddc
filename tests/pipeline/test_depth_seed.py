"""Members of an ensemble that differ by their seed find the depth once; a training alone finds its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from workplace import TINY

from graftline.pipeline.cli import compose
from graftline.pipeline.ensemble import MakeEnsemble
from graftline.pipeline.ensembles.result import EnsembleResult
from graftline.pipeline.training.result import TrainResult

NOTHING_IS_LEARNED = "optim.lr=1e-9"  # at no depth, so that the head alone is the answer


@pytest.fixture
def lines(color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return the overrides for a tiny training that tries a depth, with changes, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model("test_efficientnet").state_dict(), "weights.safetensors")
    shares = ["data.split.train=0.4", "data.split.validation=0.5", "data.split.test=0.1"]
    weights = ["backbone.weights=file", f"backbone.file={tmp_path / 'weights.safetensors'}"]
    given = ["data=folder", f"data.path={color_folder}", "freeze=auto", *shares, *weights, "tracking.register=false"]

    def changed(*changes: str) -> list[str]:
        return list({line.partition("=")[0]: line for line in [*TINY, *given, *changes]}.values())

    return changed


def measured(directory: Path) -> Any:
    """Return what was tried for a training, the seconds that it took among it."""
    return json.loads((directory / "freeze.json").read_text())["measurement"]


@pytest.mark.long
def test_members_of_one_network_find_the_depth_once(lines: Callable[..., list[str]]) -> None:
    own = ["members=3", "backbone.image_size=32,48", "choose=all", NOTHING_IS_LEARNED]
    made = compose("ensemble", lines(*own)).run()
    assert isinstance(made, EnsembleResult)
    folders = [made.directory / "members" / str(number) for number in (1, 2, 3)]
    first, second, third = (measured(folder) for folder in folders)
    assert first == third, "to the seconds that it took: it was tried once"
    assert first != second, "another image size has its own"
    assert [OmegaConf.load(one / ".hydra" / "config.yaml").train.depth_seed for one in folders] == [0, 0, 0]

    settings = ["backbone.image_size=32", NOTHING_IS_LEARNED, "seed=1", "features.directory=elsewhere/activations"]
    alone = compose("train", lines(*settings, "train.depth_seed=0")).run()
    assert isinstance(alone, TrainResult)
    again = measured(alone.directory)
    assert again != first, "nothing was known there"
    assert [row["log_loss"] for row in again["rows"]] == [row["log_loss"] for row in first["rows"]]
    member = json.loads((folders[2] / "result.json").read_text())
    assert alone.metrics == member["metrics"], "the same numbers whatever is in the cache"


@pytest.mark.long
def test_members_that_go_deeper_are_what_each_would_be_alone(lines: Callable[..., list[str]], tmp_path: Path) -> None:
    blinded: Any = timm.create_model("test_convnext")
    torch.nn.init.zeros_(blinded.head.norm.weight)  # until it is trained, it gives the same for every image
    torch.nn.init.ones_(blinded.head.norm.bias)
    save_file(blinded.state_dict(), "blinded.safetensors")
    network = ["backbone=test_convnext", f"backbone.file={tmp_path / 'blinded.safetensors'}", "optim.lr=0.01"]
    made = compose("ensemble", lines(*network, "members=2", "choose=all")).run()
    assert isinstance(made, EnsembleResult)
    folders = [made.directory / "members" / str(number) for number in (1, 2)]
    first, second = (json.loads((folder / "freeze.json").read_text()) for folder in folders)
    assert first == second
    assert len(first["plans"]) == 2
    for seed, folder in enumerate(folders):
        alone = compose("train", lines(*network, f"seed={seed}")).run()
        assert isinstance(alone, TrainResult)
        member = json.loads((folder / "result.json").read_text())
        assert alone.metrics == member["metrics"]


@pytest.mark.parametrize(
    ("own", "depth_seed"),
    [
        (["seed=3"], 3),
        (["train.depth_seed=7"], 7),
        (["folds=true"], None),  # each has other images
        (["minutes=5"], None),  # each has its own time
        (["freeze=all_but_head"], None),
    ],
)
def test_which_members_share_a_depth(lines: Callable[..., list[str]], own: list[str], depth_seed: int | None) -> None:
    stage = compose("ensemble", lines("members=2", *own)).stage
    assert isinstance(stage, MakeEnsemble)
    assert stage._recipe_of_members.depth_seed == depth_seed


@pytest.mark.parametrize("own", [["freeze=all_but_head"], ["minutes=5"]])
def test_a_seed_that_no_trial_needs_is_told(
    lines: Callable[..., list[str]], own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    stage = compose("train", lines("train.depth_seed=3", *own)).stage
    stage.check()  # type: ignore[attr-defined]  # that of a training
    assert "train.depth_seed=3 is for trials without minutes" in " ".join(capsys.readouterr().out.split())
