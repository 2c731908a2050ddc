"""The stage search as a user runs it: two tiny networks at one size, the winner trained as any other model."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tiny_weights import write_weights
from workplace import TINY, Workplace

from graftline.errors import UserError
from graftline.freezing.measured import Measured
from graftline.freezing.rules import AllAfterHead
from graftline.pipeline.cli import compose
from graftline.pipeline.search import _asks_for_whole
from graftline.pipeline.searching.scoring import ends_process
from graftline.pipeline.searching.winner import Winner, WinnerTraining
from graftline.pipeline.stage import StageResult
from graftline.pipeline.train import Train
from graftline.processes import Terminated
from graftline.training.fit import plain_interrupt

SEARCH = (
    "backbone=test_efficientnet,test_resnet",
    "backbone.image_size=64",
    *(
        one
        for one in TINY
        if one.split("=")[0] not in ("backbone", "backbone.weights", "backbone.image_size", "freeze")
    ),
)

LENET = ("backbone=lenet5", "backbone.weights=file", "backbone.file=weights/test_resnet.r160_in1k.safetensors")


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Workplace:
    workplace = make_workplace("search")
    write_weights(workplace.root / "weights")
    return workplace


@pytest.fixture(scope="module")
def data(color_folder: Path) -> tuple[str, ...]:
    return "data=folder", f"data.path={color_folder}"


@pytest.fixture(scope="module")
def searched(place: Workplace, data: tuple[str, ...]) -> dict[str, Any]:
    """The result of a search, with its output and directory."""
    ran = place.run("search", "minutes=3", *data, *SEARCH)
    assert ran.code == 0, ran.output
    return {**ran.result, "output": ran.output, "directory": ran.directory}


def test_all_are_scored_and_the_best_is_chosen(searched: dict[str, Any]) -> None:
    trials = searched["trials"]
    assert {(one["backbone"].partition(".")[0], one["image_size"]) for one in trials} == {
        ("test_efficientnet", 64),
        ("test_resnet", 64),
    }
    heads = [one["scores"][0] for one in trials if one["scores"]]
    assert len(heads) == 2
    assert {score["images"] for score in heads} == {36}  # all training images, and no others
    whole = [score for one in trials for score in one["scores"] if score["depth"] == "whole"]
    assert len(whole) in (0, 2)  # none where one of the heads is clearly worse
    (chosen,) = [one for one in trials if one["outcome"] == "chosen"]
    assert searched["chosen"] == {key: chosen[key] for key in ("backbone", "image_size")}
    assert "2 candidates: test_efficientnet, test_resnet; images of 64 px." in searched["output"]
    assert 0 <= searched["validation"]["accuracy"] <= 1
    assert (searched["directory"] / "search.png").stat().st_size > 10_000


def test_the_winner_is_a_run_as_any_other(searched: dict[str, Any], place: Workplace) -> None:
    client = place.mlflow
    winner, parent = client.get_run(searched["run_id"]), client.get_run(searched["search_run_id"])
    assert winner.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert winner.data.params["backbone.name"].partition(".")[0] == searched["chosen"]["backbone"].partition(".")[0]
    assert winner.data.tags["graftline.stage"] == "train"
    assert {parent.info.status, winner.info.status} == {"FINISHED"}
    note = parent.data.tags["mlflow.note.content"]
    accuracy = searched["metrics"]["accuracy"]["value"]
    assert f"**Test**: {100 * accuracy:.1f} %" in note
    assert f"**Trained as run**: {winner.info.run_id}" in note
    assert len(re.findall(r"^\| test_(?:resnet|efficientnet) .*\|$", note, re.MULTILINE)) == 2
    assert re.search(rf"^\*\*Chosen: {searched['chosen']['backbone'].partition('.')[0]}", note)
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    trials = [run for run in children if run.data.tags["graftline.stage"] == "search trial"]
    assert len(trials) == 2
    assert len(children) == 3
    assert all({"head/log_loss", "head/accuracy", "head/seconds"} <= {*run.data.metrics} for run in trials)
    versions = client.search_model_versions("name = 'colors0'")
    assert [version.run_id for version in versions] == [winner.info.run_id]
    assert searched["metrics"]["accuracy"]["value"] == winner.data.metrics["test/accuracy"]


def test_the_winner_can_be_evaluated_and_resumed(
    searched: dict[str, Any], place: Workplace, data: tuple[str, ...]
) -> None:
    evaluated = place.run("evaluate", f"bundle={searched['directory'] / 'train'}", *data, "evaluation.resamples=100")
    assert evaluated.code == 0, evaluated.output
    assert evaluated.result["metrics"]["accuracy"]["value"] == searched["metrics"]["accuracy"]["value"]
    config = OmegaConf.load(searched["directory"] / "train" / ".hydra" / "config.yaml")
    assert config.backbone._target_ == "graftline.backbones.backbone.Backbone"
    chosen = searched["chosen"]
    assert (config.backbone.name, config.backbone.image_size) == (chosen["backbone"], chosen["image_size"])
    assert json.loads((searched["directory"] / "train" / "result.json").read_text())["seconds"] > 0
    resumed = place.run("train", f"train.resume={searched['run_id']}", "trainer.max_epochs=3")
    assert resumed.code == 0, resumed.output
    assert resumed.result["epochs"] > searched["epochs"]
    assert resumed.directory == searched["directory"] / "train"


def test_several_models_of_the_winner_are_averaged_and_registered_as_one(
    place: Workplace, data: tuple[str, ...]
) -> None:
    before = {one.version for one in place.mlflow.search_model_versions("name = 'colors0'")}
    ran = place.run("search", "minutes=4", *data, *SEARCH, "search.members=2", "search.crops=mirror")
    assert ran.code == 0, ran.output
    assert "Training 2 models of test_" in ran.output
    result = ran.result
    assert result["metrics"]["accuracy"]["value"] > 0.5
    assert 0 <= result["validation"]["accuracy"] <= 1
    bundle = ran.directory / "ensemble" / "bundle"
    description = json.loads((bundle / "bundle.json").read_text())
    assert description["crops"] == "mirror"
    folders = sorted((ran.directory / "ensemble" / "members").iterdir())
    assert [json.loads((folder / "result.json").read_text())["stage"] for folder in folders] == ["train"] * 2
    assert json.loads((ran.directory / "ensemble" / "result.json").read_text())["stage"] == "ensemble"
    assert "from 0 epochs" not in result["outlook"], "the first member's epochs are told and drawn"
    new = [one for one in place.mlflow.search_model_versions("name = 'colors0'") if one.version not in before]
    assert [one.run_id for one in new] == [result["run_id"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.members=0"], "search.members is 0, it must be at least 1"),
        (["search.crops=10"], "search.crops=10 is for several members"),
        (["search.members=2", "search.crops=11"], "search.crops is 11: take one of 1, "),
        (["search.members=2", "refuse=0.01"], "refuse is for a model of one network: leave it out, or search.members."),
        (["search.members=2", "cluster=ray", "trainer.devices=2"], "trainer.devices is 2, but each of several"),
        (["search.members=2", "train.fold=1/5"], "train.fold is for one model: leave it out, or search.members."),
    ],
)
def test_what_cannot_be_averaged_is_refused_before_anything_is_searched(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        compose("search", words)


def test_a_resumed_search_scores_nothing_twice(
    searched: dict[str, Any], place: Workplace, data: tuple[str, ...]
) -> None:
    ran = place.run("search", "minutes=3", *data, *SEARCH, f"search.resume={searched['search_run_id']}")
    assert ran.code == 0, ran.output
    assert "scores of the earlier search are taken over." in ran.output
    for before, after in zip(searched["trials"], ran.result["trials"], strict=True):
        assert [one["seconds"] for one in before["scores"]] == [one["seconds"] for one in after["scores"]]
    assert ran.result["chosen"] == searched["chosen"]


def test_ctrl_c_gives_the_best_so_far(place: Workplace, data: tuple[str, ...], tmp_path: Path) -> None:
    if (outputs := place.root / "outputs").exists():  # of other tests
        outputs.rename(tmp_path / "outputs")
    process = place._stop(signal.SIGINT, "outputs/search/*/scores/*.npz", "search", "minutes=3", *data, *SEARCH)
    assert process.code == 0, process.output
    assert "Interrupted: the head of the best candidate so far is trained." in process.output
    (result,) = place.root.glob("outputs/search/*/result.json")
    found = json.loads(result.read_text())
    assert found["model_uri"].startswith("models:/colors0/")
    assert found["interrupted"]  # of several searches it is the last, then
    assert (result.parent / "head" / "bundle").is_dir()
    assert not (result.parent / "train").exists()


def test_ctrl_c_averages_the_models_that_are_trained(place: Workplace, data: tuple[str, ...], tmp_path: Path) -> None:
    if (outputs := place.root / "outputs").exists():
        outputs.rename(tmp_path / "outputs")
    several = ["search.members=3", "train.patience=null", "trainer.max_epochs=null"]
    words = {one.partition("=")[0]: one for one in [*data, *SEARCH, *several]}.values()
    pattern = "outputs/search/*/ensemble/members/1/result.json"
    process = place._stop(signal.SIGINT, pattern, "search", "minutes=3", *words)
    assert process.code == 0, process.output
    assert "the mean of the models that are trained so far (1) is saved" in process.output
    (result,) = place.root.glob("outputs/search/*/result.json")
    found = json.loads(result.read_text())
    assert found["interrupted"]
    assert found["model_uri"].startswith("models:/colors0/")
    assert (result.parent / "ensemble" / "bundle").is_dir()
    assert not (result.parent / "head").exists()


def test_ctrl_c_in_the_winners_training_keeps_its_best_epoch(
    place: Workplace, data: tuple[str, ...], tmp_path: Path
) -> None:
    if (outputs := place.root / "outputs").exists():
        outputs.rename(tmp_path / "outputs")
    own = [one for one in SEARCH[2:] if not one.startswith("trainer.max_epochs")]
    one = ["backbone=test_efficientnet", "backbone.image_size=64", "freeze=none", "trainer.max_epochs=500", *own]
    pattern = "outputs/search/*/train/checkpoints/last.ckpt"
    process = place._stop(signal.SIGINT, pattern, "search", "minutes=3", "train.patience=null", *data, *one)
    assert process.code == 0, process.output
    assert "Interrupted: the winner is saved and tested as its best epoch left it." in process.output
    (result,) = place.root.glob("outputs/search/*/result.json")
    found = json.loads(result.read_text())
    assert found["interrupted"]
    assert found["outlook"].startswith(
        "The search was interrupted: the winner is as the best epoch until then left it."
    )
    assert found["model_uri"].startswith("models:/colors0/")
    assert found["metrics"]["accuracy"]["value"] > 0
    assert not (result.parent / "head").exists()
    run = place.mlflow.get_run(found["run_id"])
    assert run.info.status == "FINISHED"
    phase = result.parent / "train" / "checkpoints" / "phase.json"
    before = json.loads(phase.read_text())["history"]
    assert before["interrupted"]
    more = place.run("train", f"train.resume={found['run_id']}", "trainer.max_epochs=2")
    assert more.code == 0, more.output
    after = json.loads(phase.read_text())["history"]
    assert after["epochs"][: len(before["epochs"])] == before["epochs"], "a resume goes on where that ended"
    assert not after["interrupted"]


def test_too_little_time_is_said_before_anything_is_trained(place: Workplace, data: tuple[str, ...]) -> None:
    ran = place.run("search", "minutes=0.3", *data, *SEARCH)
    assert ran.code == 1
    assert "0.3 minutes are not enough for 60 images: one pass of test_" in ran.output
    assert "give minutes=" in ran.output
    experiment = place.mlflow.get_experiment_by_name("colors0")
    if experiment is not None:  # no run is left behind
        failed = place.mlflow.search_runs([experiment.experiment_id], "attributes.status = 'FAILED'")
        assert not failed


def test_where_nothing_can_be_compared_the_plain_answer_is_trained(place: Workplace, data: tuple[str, ...]) -> None:
    """The other network that is named has five layer groups only."""
    six = ["backbone=test_resnet,test_efficientnet", "freeze=first_stages", "freeze.number=6"]
    ran = place.run("search", "minutes=3", *data, *six, *SEARCH[1:])
    assert ran.code == 0, ran.output
    assert "test_resnet is left out: freeze.number is 6, but this network has 5 layer groups" in ran.output
    assert "Nothing is searched, as only one candidate is left" in ran.output
    assert not ran.result["interrupted"]
    assert ran.result["chosen"] == {"backbone": "test_efficientnet", "image_size": 64}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([SEARCH[0], "freeze=first_stages", "freeze.number=99"], "FirstStages.number is 99, but this network has "),
        (["backbone.weights=none"], "A search compares what networks know already"),
        (
            [*LENET, "train.grad_checkpointing=true"],
            "The backbone 'lenet5' has no gradient checkpointing: leave out Recipe.grad_checkpointing",
        ),
    ],
)
def test_what_no_network_can_have_is_refused_before_images_are_read(
    words: list[str], message: str, place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.root)
    search: Any = compose("search", ["data=folder", "data.path=nowhere", *SEARCH[1:], *words]).stage
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        search.run(tmp_path)


def test_sigterm_ends_a_search_whatever_is_going_on() -> None:
    stopped = SystemExit(1)  # what Lightning makes of it
    stopped.__context__ = Terminated("SIGTERM")
    with pytest.raises(KeyboardInterrupt) as error, plain_interrupt():
        raise stopped
    assert ends_process(error.value)
    assert not ends_process(KeyboardInterrupt())


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_no_time_is_refused(minutes: str) -> None:
    with pytest.raises(UserError, match=r"^minutes is .*, it must be above 0 and finite\.$"):
        compose("search", [f"minutes={minutes}"])


def test_named_networks_are_one_search() -> None:
    stage: Any = compose("search", ["backbone=resnet50,vgg16", "minutes=10"]).stage
    assert [backbone.name.partition(".")[0] for backbone in stage.backbones] == ["resnet50", "vgg16"]
    assert stage.backbone == stage.backbones[0]
    assert compose("search", []).stage.backbones == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("freeze", "asks"), [("freeze=auto", True), ("freeze=measured", False), ("freeze=all_but_head", False)]
)
def test_a_depth_that_was_given_is_kept(freeze: str, *, asks: bool) -> None:
    stage: Any = compose("search", [freeze]).stage
    assert _asks_for_whole(stage.freeze) is asks
    assert _asks_for_whole(compose("search", []).stage.freeze)  # type: ignore[attr-defined]


@pytest.mark.parametrize("whole", [False, True])
def test_a_winner_may_be_trained_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, whole: bool) -> None:
    """The stage that is run and the configuration that a resume reads say so both."""
    composed = compose("search", ["freeze.batchnorm=frozen"])
    stage: Any = composed.stage
    hydra = tmp_path / ".hydra"
    hydra.mkdir()
    OmegaConf.save(composed.config, hydra / "config.yaml")
    (hydra / "overrides.yaml").write_text("[]")
    ran: list[Train] = []

    def run(training: WinnerTraining, _: Path) -> StageResult:
        ran.append(training)
        return StageResult()

    monkeypatch.setattr(WinnerTraining, "run", run)
    winner = Winner(stage, tmp_path, stage.backbone, None, "parent")  # type: ignore[arg-type]  # no image is looked at
    winner.train(1.0, lambda _: False, whole=whole)
    rule = AllAfterHead if whole else Measured
    assert type(ran[0].freeze) is rule
    config = OmegaConf.load(tmp_path / "train" / ".hydra" / "config.yaml")
    assert config.freeze._target_.endswith(f".{rule.__name__}")
    assert ran[0].freeze.batchnorm == config.freeze.batchnorm == "frozen"
