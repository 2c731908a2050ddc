"""The end of a search: the winner's training, also where something stands in its way."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from timm.models.resnet import ResNet
from tiny_weights import write_weights

from graftline.evaluation.head_score import HeadScore
from graftline.freezing.measured import Measured
from graftline.freezing.rule import FreezeRule
from graftline.freezing.rules import FirstStages
from graftline.pipeline.cli import compose
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.search import Search
from graftline.pipeline.searching import scoring
from graftline.pipeline.searching.scoring import Scoring
from graftline.pipeline.searching.winner import Winner
from graftline.pipeline.stage import StageResult
from graftline.pipeline.train import Train
from graftline.search.contestant import PassSeconds
from graftline.search.deeper import choose
from graftline.search.history import ScoredCandidate, ScoreFiles, SearchHistory
from graftline.search.ledger import TimeLedger
from graftline.search.options import SearchOptions
from graftline.search.rounds import TrainingImages
from graftline.training.budget import check_budget
from graftline.training.setup import TrainingSetup
from graftline.training.source_decision import head_is_live

WORDS = (
    "backbone.image_size=32",
    "backbone.weights_dir=weights",
    "data=folder",
    "augment=none",
    "trainer=cpu",
    "train.workers=0",
    "minutes=3",
)
MakeWinner = Callable[..., tuple[Search, Winner, TrainingSetup]]


@pytest.fixture
def make_winner(color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWinner:
    """Return a function that makes a search, its winner, and the setup of its comparisons."""
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "weights")

    def make(backbone: str = "test_efficientnet", *words: str) -> tuple[Search, Winner, TrainingSetup]:
        composed = compose("search", [*WORDS, f"data.path={color_folder}", f"backbone={backbone}", *words])
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


@pytest.mark.parametrize("rule", [Measured(), FirstStages(number=1)])
def test_a_network_that_cannot_be_saved_does_not_win(
    rule: FreezeRule, make_winner: MakeWinner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next best takes its place, before a network is trained as a whole."""
    search, _, setup = make_winner("test_resnet,test_efficientnet")
    search = replace(search._with_fitting_networks(), freeze=rule)
    history, images = SearchHistory(search._candidates(setup)), TrainingImages.of(setup.version)
    files, first = ScoreFiles(tmp_path / "scores", setup.version.digest), search._first(history, setup)
    for candidate in history.candidates:
        loss = 0.1 if candidate.network == "test_resnet" else 0.2
        score = HeadScore(np.full(36, loss) + np.arange(36) / 1e3, np.ones(36), 1.0)
        files.save(ScoredCandidate(candidate, 36, score, 1.0, 1.0))
    forward = ResNet.forward_features  # ONNX has no Bessel functions
    monkeypatch.setattr(ResNet, "forward_features", lambda self, x: torch.special.bessel_j0(forward(self, x)))
    monkeypatch.setattr("graftline.backbones.families.TRIED", frozenset({"efficientnet"}))
    known = history, setup, images, TimeLedger(180.0), files, first, PassSeconds(0.0, 1e-12)
    compared: list[SearchHistory] = []
    monkeypatch.setattr(scoring, "train_deeper", lambda _, history, *__: compared.append(history))
    assert not Scoring(search.freeze, *known, search._check_candidate).run(tmp_path / "checkpoints")
    assert bool(compared) is isinstance(rule, Measured), "only what may be trained as a whole is compared so"
    chosen = choose(history)
    assert chosen is not None
    assert chosen.network == "test_efficientnet"
    assert "cannot be written as ONNX" in history.outcomes["test_resnet 32 px"]
    assert {one.candidate.network for one in history.scored} == {"test_efficientnet"}


def test_the_head_alone_is_trained_on_cached_activations_whatever_was_configured(
    make_winner: MakeWinner, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = "train.mixup_alpha=0.2", "train.cutmix_alpha=1.0", "train.label_smoothing=0.1"
    _, winner, setup = make_winner("test_efficientnet", "features=live", "features.views=3", *mixed)
    ran: list[Train] = []

    def run(training: Train, _: Path) -> StageResult:
        ran.append(training)
        return StageResult()

    monkeypatch.setattr(Train, "run", run)
    winner.train_head()
    (stage,) = ran
    assert not head_is_live(replace(setup, features=stage.features, recipe=stage.train))
    assert stage.features.views == 0
    assert stage.train.label_smoothing == 0.1
    config = OmegaConf.load(winner.directory / "head" / ".hydra" / "config.yaml")
    assert (config.features.cache, config.features.views, config.minutes) == (True, 0, None)
    assert (config.train.mixup_alpha, config.train.cutmix_alpha) == (0.0, 0.0)
