"""The end of a search: the winner's training, also where something stands in its way."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf
from timm.models.resnet import ResNet
from tiny_weights import write_weights

from conftest import paint_mislabeled
from graftline.backbones.backbone import Backbone
from graftline.bundle.layout import read_description
from graftline.data.version import Samples
from graftline.errors import TooLittleMemoryError
from graftline.evaluation.head_score import HeadScore
from graftline.freezing.measured import Measured
from graftline.freezing.rule import FreezeRule
from graftline.freezing.rules import FirstStages
from graftline.pipeline.cli import compose
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.search import Search
from graftline.pipeline.searching import scoring
from graftline.pipeline.searching.scoring import Scoring
from graftline.pipeline.searching.trial_runs import TrialRuns
from graftline.pipeline.searching.winner import Winner
from graftline.pipeline.stage import StageResult
from graftline.pipeline.train import Train
from graftline.search.candidates import Candidate
from graftline.search.contestant import PassSeconds
from graftline.search.deeper import choose
from graftline.search.history import HEAD, WHOLE, Depth, ScoredCandidate, ScoreFiles, SearchHistory
from graftline.search.ledger import TimeLedger
from graftline.search.options import SearchOptions
from graftline.search.rounds import HeadRounds, TrainingImages
from graftline.tracking.tracking import Tracking
from graftline.training.budget import check_budget
from graftline.training.head_trunk import HeadTrunk
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


@pytest.mark.parametrize("members", [1, 2])
def test_a_winner_that_does_not_fit_the_gpu_is_trained_by_its_head(
    members: int, make_winner: MakeWinner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search, winner, setup = make_winner()
    search = replace(search, search=SearchOptions(members=members))

    def run_out(*_: Any, **__: Any) -> None:
        raise TooLittleMemoryError

    monkeypatch.setattr(Train, "run", run_out)
    monkeypatch.setattr("graftline.pipeline.ensemble.MakeEnsemble.run", run_out)
    heads: list[Winner] = []
    monkeypatch.setattr(Winner, "train_head", lambda winner: heads.append(winner))
    _, was_interrupted = search._train_winner(replace(winner, search=search), setup, TimeLedger(180.0), whole=True)
    assert len(heads) == 1
    assert not was_interrupted
    told = " ".join(capsys.readouterr().out.split())
    assert ("More than the head of the winner does not fit" in told) is (members == 1)
    assert ("The GPU has no room for another model: only the head" in told) is (members == 2)


def test_models_that_are_trained_are_averaged_where_the_next_one_does_not_fit_the_gpu(
    make_winner: MakeWinner, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, winner, setup = make_winner()
    search = replace(search, search=SearchOptions(members=2))
    member = winner.directory / "ensemble" / "members" / "1"
    asked: list[dict[str, Any]] = []

    def run_out(_: Winner, __: object, own: dict[str, Any], **___: Any) -> None:
        asked.append(own)
        if len(asked) == 1:
            member.mkdir(parents=True)
            (member / "result.json").touch()
            raise TooLittleMemoryError

    monkeypatch.setattr(Winner, "train_ensemble", run_out)
    _, was_interrupted = search._train_winner(winner, setup, TimeLedger(180.0), whole=False)
    assert asked[1]["runs"] == [str(member)]
    assert not was_interrupted


def test_a_head_that_does_not_fit_the_gpu_is_tried_once(
    make_winner: MakeWinner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here there is time for nothing else."""
    search, winner, setup = make_winner()
    heads: list[Winner] = []

    def run_out(winner: Winner) -> None:
        heads.append(winner)
        raise TooLittleMemoryError

    monkeypatch.setattr(Winner, "train_head", run_out)
    with pytest.raises(TooLittleMemoryError):
        search._train_winner(winner, setup, TimeLedger(1.0), whole=False)
    assert len(heads) == 1


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


def test_a_network_whose_activations_are_no_numbers_is_left_out(
    make_winner: MakeWinner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    search, _, setup = make_winner("test_efficientnet,test_resnet")
    search = search._with_fitting_networks()
    history, images = SearchHistory(search._candidates(setup)), TrainingImages.of(setup.version)
    files, first = ScoreFiles(tmp_path / "scores", setup.version.digest), search._first(history, setup)
    plain = HeadTrunk.activations_quietly

    def flawed(trunk: HeadTrunk, samples: Samples) -> np.ndarray:
        activations = plain(trunk, samples).copy()
        if trunk is first.trunk:
            activations[0, 0] = np.inf
        return activations

    monkeypatch.setattr(HeadTrunk, "activations_quietly", flawed)
    built = {first.candidate.name: first}
    HeadRounds(setup, history, images, TimeLedger(180.0), files, built, PassSeconds(0.0, 1e-12)).run(90.0)
    name = first.candidate.name
    assert history.outcomes[name].startswith("not tried: The network's activations of 1 of 36 images are infinite")
    assert f"{name} is left out: The network's activations" in caplog.text
    (other,) = (one for one in history.candidates if one != first.candidate)
    assert choose(history) == other


def test_the_head_alone_is_trained_on_cached_activations_whatever_was_configured(
    make_winner: MakeWinner, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = "train.mixup_alpha=0.2", "train.cutmix_alpha=1.0", "train.label_smoothing=0.1"
    _, winner, setup = make_winner("test_efficientnet", "features=live", "features.views=3", "name=foo", *mixed)
    ran: list[Train] = []

    def run(training: Train, _: Path) -> StageResult:
        ran.append(training)
        return StageResult()

    monkeypatch.setattr(Train, "run", run)
    winner.train_head()
    (stage,) = ran
    assert not head_is_live(replace(setup, features=stage.features, recipe=stage.train))
    assert stage.features.views == 0
    assert stage.name == "foo, test_efficientnet", "the search is called foo"
    assert stage.train.label_smoothing == 0.1
    config = OmegaConf.load(winner.directory / "head" / ".hydra" / "config.yaml")
    assert (config.features.cache, config.features.views, config.minutes) == (True, 0, None)
    assert config.name == stage.name
    assert (config.train.mixup_alpha, config.train.cutmix_alpha) == (0.0, 0.0)


@pytest.mark.long
def test_a_winner_that_is_trained_as_a_whole_is_held_against_its_head(
    make_winner: MakeWinner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On the validation images, where these suffice to choose by."""
    images = paint_mislabeled(tmp_path / "images")
    own = [f"data.path={images}", "data.split.validation=0.4", "trainer.max_epochs=1", "optim.lr=1e-9"]
    _, winner, setup = make_winner("test_efficientnet", *own, "evaluation.resamples=100", "tracking.register=false")
    assert setup.version.num_images("validation") > 50
    with caplog.at_level("INFO", "graftline"):
        result = winner.train(3.0, lambda _: False, whole=True)
    assert "; then " in result.facts["freeze"]
    (difference,) = [one for one in caplog.messages if one.startswith("This phase has ")]
    checks = sorted((tmp_path / "run" / "train" / "checkpoints").rglob("best.ckpt"))
    assert len(checks) == 2
    kept = read_description(result.bundle)["card"]["freeze_plan"]
    assert (kept["trained_parameters"] < 10_000) == ("too little to keep it" in difference), "the head, or all"


def test_each_candidate_has_a_run_that_hears_of_each_score(tmp_path: Path) -> None:
    tracking = Tracking(uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = MlflowClient(tracking.uri, tracking.uri)
    candidate = Candidate(Backbone("test_resnet"), 64, 1e6, 0)
    score = HeadScore(np.full(36, 0.5), np.ones(36), 1.0)

    def found(key: str) -> Run | None:
        experiments = [one.experiment_id for one in client.search_experiments()]
        return next(iter(client.search_runs(experiments, f"metrics.`{key}` > 0")), None)

    def log(runs: TrialRuns, depth: Depth, images: int) -> Run:
        """Log a score by the history of a search; returns the run once it has the score."""
        history = SearchHistory([candidate], on_score=runs.log)
        history.add(ScoredCandidate(candidate, images, score, 1.0, 1.0, depth))
        deadline = time.monotonic() + 60
        while (run := found(f"{depth}/log_loss")) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return run

    with TrialRuns(tracking, "colors0", tmp_path / "trials") as runs:
        first = log(runs, HEAD, 36)
        assert first.info.status == "RUNNING"
        assert first.info.run_name == "test_resnet 64 px"
        assert log(runs, WHOLE, 72).info.run_id == first.info.run_id
        runs.tell_outcomes(SearchHistory([candidate], outcomes={candidate.name: "chosen"}))
    ended = client.get_run(first.info.run_id)
    assert ended.info.status == "FINISHED"
    assert ended.data.tags["graftline.outcome"] == "chosen"


def test_a_search_ends_the_runs_of_one_that_was_killed(
    make_winner: MakeWinner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search, _, setup = make_winner()
    search = replace(search, tracking=Tracking(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", system_metrics=False))
    client, runs = MlflowClient(search.tracking.uri, search.tracking.uri), list[str]()
    for name in ("killed", "next"):
        run = search._start_search(setup, RunDirectory(tmp_path / name))
        told = capsys.readouterr().out
        assert (
            (f"Marked as KILLED, since their process is gone: {runs[0]}." in told) if runs else ("KILLED" not in told)
        )
        run._outbox.close()
        run._outbox._thread.join()
        runs.append(run.id)
    assert [client.get_run(one).info.status for one in runs] == ["KILLED", "RUNNING"]


def test_a_search_goes_on_without_runs_of_its_candidates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    away = Tracking(uri=f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")
    candidate, score = Candidate(Backbone("test_resnet"), 64, 1e6, 0), HeadScore(np.ones(36), np.ones(36), 1.0)
    with TrialRuns(away, "colors0", tmp_path / "trials") as runs:
        for images in (36, 72):
            runs.log(ScoredCandidate(candidate, images, score, 1.0, 1.0))
    assert caplog.text.count("have no run in MLflow") == 1
