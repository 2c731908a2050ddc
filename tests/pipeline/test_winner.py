"""The end of a search: the winner's training, also where something stands in its way."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from tiny_weights import write_weights

from graftline.pipeline.cli import compose
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.search import Search
from graftline.pipeline.searching.winner import Winner
from graftline.search.ledger import TimeLedger
from graftline.search.options import SearchOptions
from graftline.training.budget import check_budget
from graftline.training.setup import TrainingSetup

WORDS = (
    "backbone=test_efficientnet",
    "backbone.image_size=32",
    "backbone.weights_dir=weights",
    "data=folder",
    "augment=none",
    "trainer=cpu",
    "train.workers=0",
    "minutes=3",
)
MakeWinner = Callable[[], tuple[Search, Winner, TrainingSetup]]


@pytest.fixture
def make_winner(color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWinner:
    """Return a function that makes a search, its winner, and the setup of its comparisons."""
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "weights")

    def make() -> tuple[Search, Winner, TrainingSetup]:
        composed = compose("search", [*WORDS, f"data.path={color_folder}"])
        files = RunDirectory(tmp_path / "run")
        files.config.parent.mkdir(parents=True)
        OmegaConf.save(composed.config, files.config)
        files.overrides.write_text(yaml.safe_dump(composed.overrides))
        stage: Any = composed.stage
        setup = stage._prepare(stage.check(), files)
        return stage, Winner(stage, files.path, stage.backbone, setup.version, "parent"), setup

    return make


@pytest.mark.parametrize("members", [1, 2])
def test_a_machine_that_becomes_slower_costs_the_depth_and_not_the_model(
    members: int, make_winner: MakeWinner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The winner's training measures its pass anew: here, none of the time is left for it then."""
    search, winner, setup = make_winner()
    search = replace(search, search=SearchOptions(members=members))
    winner = replace(winner, search=search)

    def too_slow(setup: TrainingSetup, _: float, minutes: float, *, freezes: bool) -> None:
        check_budget(setup, 0.0, minutes, freezes=freezes)

    monkeypatch.setattr("graftline.pipeline.train.check_budget", too_slow)
    heads: list[Winner] = []
    monkeypatch.setattr(Winner, "train_head", lambda winner: heads.append(winner))
    _, was_interrupted = search._train_winner(winner, setup, TimeLedger(180.0), whole=False)
    assert heads == [winner]
    assert not was_interrupted
