"""What a training refuses before it starts, and what its model holds."""

import base64
import html
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import timm
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file, save_file
from workplace import TINY

from graftline.backbones.zoo.lenet5 import LeNet5
from graftline.bundle.layout import read_description
from graftline.bundle.neighbors import Neighbors
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.freezing.batchnorm import statistics
from graftline.freezing.depth import deep_plan, head_plan
from graftline.freezing.rule import FreezeDecision
from graftline.pipeline.__main__ import main
from graftline.pipeline.cli import ComposedStage, compose
from graftline.pipeline.cli.wording import reword
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.train import Train
from graftline.pipeline.training.result import TrainResult
from graftline.pipeline.training.run_log import summary
from graftline.training.policy_choice import PolicyChoice


@pytest.fixture
def train(color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The overrides for a training in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return ["data=folder", f"data.path={color_folder}", *TINY, "trainer.max_epochs=1", "tracking.register=false"]


def test_without_validation_images_nothing_is_read(train: list[str], tmp_path: Path) -> None:
    for shares in (["data.split.validation=0"], ["data.split.train=0.8", "data.split.test=0.2"]):
        with pytest.raises(UserError, match=r"for validation, which a training needs .* give data\.split\.validation"):
            compose("train", [*train, *shares]).run(tmp_path / "run")
    assert not (tmp_path / "data").exists()


def test_without_test_images_the_model_has_no_scores(
    train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = compose("train", [*train, "data.split.test=0", "tracking.register=true"]).run(tmp_path / "run")
    assert isinstance(result, TrainResult)
    assert not result.scores
    assert not result.metrics
    assert result.model_uri == "models:/colors0/1"
    assert "model has no test scores" in " ".join(capsys.readouterr().out.split())
    report = (tmp_path / "run" / "report.html").read_text()
    assert "No test scores" in report
    for command in ("crops=", "explain bundle=", "evaluate bundle=", "compare runs="):
        assert command not in report, "without test images that tells nothing"
    assert "model has no test scores" in report
    with pytest.raises(UserError, match=r"no test images in .*, as the bundle was trained: .* split=validation"):
        compose("evaluate", [*train[:2], f"bundle={result.bundle}"]).run()
    for color in ("red", "green"):
        (tmp_path / "new" / "val" / color).mkdir(parents=True)
        Image.new("RGB", (20, 20), color).save(tmp_path / "new" / "val" / color / "0.png")
    new = ["data=folder", f"data.path={tmp_path / 'new'}", "split=validation", "evaluation.resamples=100"]
    assert compose("evaluate", [*new, f"bundle={result.bundle}"]).run().metrics


def test_of_elongated_and_of_large_images_it_is_said_how_they_are_seen(
    train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for color in ("red", "green"):
        (tmp_path / "strips" / color).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (600 + number, 200), color).save(tmp_path / "strips" / color / f"{number}.jpg")
    strips = [*train, f"data.path={tmp_path / 'strips'}", "data.name=strips"]
    for given, seen in ([], "squash"), (["backbone.crop_mode=center"], "center"):
        result = compose("train", [*strips, *given]).run(tmp_path / seen)
        assert isinstance(result, TrainResult)
        assert read_description(result.bundle)["preprocessing"]["crop_mode"] == seen
        said = " ".join(capsys.readouterr().out.split())
        assert ("squashed to a square, not their center alone" in said) is not bool(given)
        assert "data.decode.jpeg_side_px=64 decodes them faster" in said


def test_a_training_without_a_part_of_the_images_says_how_many_it_had(
    train: list[str], tmp_path: Path, empty_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(empty_database, tmp_path / "runs.db")
    composed = compose("train", [*train, "train.fold=1/3", f"tracking.uri=sqlite:///{tmp_path / 'runs.db'}"])
    result = composed.run(tmp_path / "run")
    assert isinstance(result, TrainResult)
    said = capsys.readouterr().out
    assert "Last epoch 1 of 1; saving the bundle" in said, "nine validation images cannot tell which is the best"
    _check_that_commands_find_the_run(composed, result, said)
    images = result.version.num_images("train")
    assert images < DatasetVersion.load(result.version.directory).num_images("train")
    left_out = "without part 1/3 of the training images"
    assert re.search(rf"{images} train, .*; {left_out}</dd>", result.report.read_text())
    card = (result.bundle / "README.md").read_text()
    assert f"| all | {images} |" in card
    assert f"`{result.version.split_digests['train']}`" in card
    assert left_out in card


def _check_that_commands_find_the_run(composed: ComposedStage, result: TrainResult, said: str) -> None:
    """What a training tells its reader to type works as it stands, also where another database has its run."""

    def command(pattern: str, text: str) -> list[str]:
        found = re.search(rf"graftline ({pattern})", text)
        assert found is not None, text
        return shlex.split(found[1])

    stage, *overrides = command("train .*(?= goes on with it)", said)
    with pytest.raises(UserError, match="finished after 1 epochs"):
        compose(stage, overrides)
    unsent = reword(composed.config, f"2 records of run {result.run_id}: sync() sends them.", composed.overrides)
    assert main(command("sync .*(?= sends them)", unsent)) == 0
    stage, *overrides = command("compare [^<]*", html.unescape(result.report.read_text()))
    assert compose(stage, overrides).config.tracking.uri == composed.config.tracking.uri


def test_a_class_without_validation_images_is_told_before_the_training(
    color_folder: Path, train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = {"train": ("blue", "green", "red"), "validation": ("blue", "red"), "test": ("blue", "green", "red")}
    for number, (split, colors) in enumerate(splits.items()):
        for color in colors:
            (tmp_path / "given" / split / color).mkdir(parents=True)
            for file in sorted((color_folder / color).iterdir())[number::3]:
                shutil.copy(file, tmp_path / "given" / split / color)
    compose("train", ["data=folder", f"data.path={tmp_path / 'given'}", *train[2:]]).run(tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    told = "There is no validation image of “green”, so that what those images decide"
    assert 0 < said.index(told) < said.index("Run "), "before anything is trained"
    assert "where the source gives no splits, draw them anew with data.parent=none" in said


def test_batches_of_one_image_are_refused_before_images_are_read(train: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'test_efficientnet' cannot .* of 32 x 32 px .*: give train\.batch_size=2"):
        compose("train", [*train, "train.batch_size=1"]).run(tmp_path / "run")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["sets=5"], r"^sets is 5(\.0)?, it must be above 0 and below 1"),
        (["refuse=2"], r"^refuse is 2(\.0)?, it must be above 0 and below 1"),
        (["freeze=first_stages", "freeze.number=99"], r"^freeze\.number is 99, but this network has \d+ layer groups"),
        (["freeze=names", "freeze.frozen=[typo.*]"], r"^freeze\.frozen: typo\.\* matches no parameter below the head"),
        (["decision=recall", "decision.class_name=dab"], r"^decision\.class_name is 'dab', but the classes are blue, "),
        (["freeze=all_but_head"], r"^The frozen layers would be random \(.*\): use freeze=none, or give"),
    ],
)
def test_what_is_known_without_images_is_refused_before_they_are_read(
    train: list[str], tmp_path: Path, given: list[str], message: str
) -> None:
    lines = {line.partition("=")[0]: line for line in [*train, *given]}
    with pytest.raises(UserError, match=message):
        compose("train", list(lines.values())).run(tmp_path / "run")
    assert not (tmp_path / "data").exists()


def test_statistics_that_know_nothing_are_not_frozen(train: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pretrained weights.* no statistics.*: leave freeze\.batchnorm=auto\.$"):
        compose("train", [*train, "freeze.batchnorm=frozen"]).run(tmp_path / "run")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert not client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def test_a_network_of_an_untried_family_is_saved_before_images_are_read(
    train: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftline.backbones.families.TRIED", frozenset())
    # ONNX has no Bessel functions
    monkeypatch.setattr(LeNet5, "forward_features", lambda self, x: torch.special.bessel_j0(self.conv2(self.conv1(x))))
    lines = {line.partition("=")[0]: line for line in [*train, "backbone=lenet5"]}
    with pytest.raises(UserError, match=r"^'lenet5' cannot be written as ONNX \(.*\): take another backbone\.$"):
        compose("train", list(lines.values())).run(tmp_path / "run")
    assert not (tmp_path / "data").exists()
    assert "Nobody has tried the family of lenet5" in (tmp_path / "run" / "log.txt").read_text()


def test_a_training_that_diverges_leaves_no_model(train: list[str], tmp_path: Path) -> None:
    given = ["backbone=lenet5", "optim=sgd", "optim.lr=1e30", "tracking.register=true"]
    lines = {line.partition("=")[0]: line for line in [*train, *given]}
    with pytest.raises(UserError, match=r"diverged: in epoch 1 the .* loss is .* rate of 1e\+30: lower optim\.lr\.$"):
        compose("train", list(lines.values())).run(tmp_path / "run")
    assert not list(tmp_path.rglob("bundle*"))
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(database, database)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert [run.info.status for run in client.search_runs(experiments)] == ["FAILED"]
    assert not client.search_registered_models()


@pytest.mark.parametrize(("golden", "size"), [(1, (40, 40)), (0, (76, 52))])
def test_a_model_shows_a_real_image_only_if_its_bundle_may(
    train: list[str], tmp_path: Path, golden: int, size: tuple[int, int]
) -> None:
    compose("train", [*train, f"bundle.golden={golden}", f"bundle.neighbors={3 * golden}"]).run(tmp_path / "run")
    (file,) = tmp_path.rglob("artifacts/input_example.json")
    example = json.loads(file.read_text())["data"][0][0]
    assert Image.open(io.BytesIO(base64.b64decode(example))).size == size  # of the pictures, and of the made-up ones
    kept = Neighbors.load(
        tmp_path / "run/bundle/neighbors.npz", read_description(tmp_path / "run/bundle").get("neighbors")
    )
    assert (kept is None) == (golden == 0)
    assert kept is None or len(kept.pictures) == len(kept.labels) == len(kept.embeddings) == 3


@pytest.mark.long
def test_a_run_finds_once_which_transforms_keep_the_label(
    train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = ["data.split.train=0.4", "data.split.validation=0.5", "data.split.test=0.1"]
    long = ["augment=auto", "trainer.max_epochs=20"]
    lines = {line.partition("=")[0]: line for line in [*train, *shares, *long]}
    result = compose("train", list(lines.values())).run(tmp_path / "run")
    assert isinstance(result, TrainResult)
    choice = PolicyChoice.from_json(json.loads((result.directory / "augment.json").read_text()))
    assert [row.name for row in choice.rows] == ["crop", "mirror", "flip", "rotate", "brightness", "color"]
    said = " ".join(capsys.readouterr().out.split())
    assert f"Augmentation: {choice.sentence()}." in said
    assert html.escape(choice.sentence()) in (result.directory / "report.html").read_text()
    assert list(tmp_path.rglob("artifacts/augment/augment.json"))
    policy = ", ".join(choice.kept) or "none"
    client = MlflowClient(*2 * (f"sqlite:///{tmp_path / 'mlflow.db'}",))
    assert client.get_run(result.run_id).data.tags["graftline.augment"] == policy
    compose("train", [f"train.resume={result.run_id}", "trainer.max_epochs=21"]).run()
    said = " ".join(capsys.readouterr().out.split())
    assert f"Augmentation: {choice.sentence()}." in said
    assert "Finding out" not in said  # it goes on with what was found


def test_a_head_on_cached_activations_needs_no_look_at_transforms(train: list[str], tmp_path: Path) -> None:
    given = ["augment=auto", "features=cached", f"features.directory={tmp_path / 'cache'}", "freeze=all_but_head"]
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_efficientnet", num_classes=3).state_dict(), weights)
    lines = {line.partition("=")[0]: line for line in [*train, *given, "backbone.weights=file"]}
    compose("train", [*lines.values(), f"backbone.file={weights}"]).run(tmp_path / "run")
    assert not (tmp_path / "run" / "augment.json").exists()


def test_what_becomes_of_the_statistics_of_batchnorm_is_told_where_more_than_the_head_is_trained(
    train: list[str], tmp_path: Path
) -> None:
    stage = compose("train", [*train, "freeze.batchnorm=trained"]).stage
    assert isinstance(stage, Train)
    setup = stage._prepare(stage.check(), RunDirectory(tmp_path / "run"))
    network = setup.graft.network
    plans = head_plan(network), deep_plan(network, 0, "it pays", 1)
    told = [summary(setup, FreezeDecision((plan,)), "test").get("batchnorm") for plan in plans]
    assert told == [None, "trained"]


@pytest.mark.parametrize("given", [[], ["freeze.batchnorm=trained"]])
def test_few_images_leave_the_statistics_of_batchnorm_as_they_are(
    train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    weights = tmp_path / "weights.safetensors"
    network = timm.create_model("test_efficientnet", num_classes=3)
    save_file(network.state_dict(), weights)
    lines = {line.partition("=")[0]: line for line in [*train, "freeze=none", *given, "backbone.weights=file"]}
    result = compose("train", [*lines.values(), f"backbone.file={weights}"]).run(tmp_path / "run")
    assert isinstance(result, TrainResult)
    trained = load_file(tmp_path / "run" / "bundle" / "model.safetensors")
    assert all(torch.equal(buffer, trained[name]) for name, buffer in statistics(network).items()) == (not given)
    said = " ".join(capsys.readouterr().out.split())
    assert ("BatchNorm keeps the statistics that the weights came with" in said) == (not given)
    run = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(result.run_id)
    choice, told = ("trained", "'s statistics are trained along") if given else ("frozen", " keeps the statistics that")
    assert run.data.params["batchnorm"] == choice
    report = html.unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    for text in (run.data.tags["mlflow.note.content"], report):
        assert f"; BatchNorm{told}" in text


@pytest.mark.long
def test_the_time_that_a_head_leaves_goes_to_the_whole_network(
    train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_efficientnet", num_classes=3).state_dict(), weights)
    shares = ["data.split.train=0.4", "data.split.validation=0.5", "data.split.test=0.1"]
    nothing_is_learned = "optim.lr=1e-9"  # at no depth, so that the head alone is the answer
    cached = ["features=cached", f"features.directory={tmp_path / 'cache'}"]
    given = [*cached, "freeze=auto", nothing_is_learned, "minutes=1", "backbone.weights=file"]
    lines = {line.partition("=")[0]: line for line in [*train, *shares, *given]}
    result = compose("train", [*lines.values(), f"backbone.file={weights}"]).run(tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "all 6 layer groups below the head frozen" in said
    assert re.search(
        r"Freeze: the time that the head alone leaves is for more of the network: nothing frozen, for \d+ s; ", said
    )
    assert "nothing frozen, 1 epoch" not in said
    assert re.search(r"Best epoch \d of 2, trained: (head|all); saving the bundle", said)
    assert isinstance(result, TrainResult)
    run = MlflowClient(*2 * (f"sqlite:///{tmp_path / 'mlflow.db'}",)).get_run(result.run_id)
    assert run.data.params["trained"] == "head then all"
    assert run.data.params["epochs"] == "by the clock"
    assert re.search(r"all 6 .* frozen, 1 epoch; then .* nothing frozen, for \d+ s$", run.data.tags["graftline.freeze"])
    plan = read_description(result.bundle)["card"]["freeze_plan"]
    kept = "head" if plan["trained_parameters"] < 10_000 else "all"
    assert f"trained: {kept}; saving" in said, "the card says what was trained of the model that is kept"


@pytest.mark.parametrize("minutes", ["inf", "nan", "0"])
def test_a_time_that_is_none_is_refused_before_images_are_read(minutes: str) -> None:
    with pytest.raises(UserError, match=r"^minutes is .*, it must be above 0 and finite\.$"):
        compose("train", [f"minutes={minutes}", "data=folder", "data.path=nowhere"]).run()
