"""The parts of a retraining: when it is due, what has changed, what is kept, and what it does not load."""

import ast
import json
import os
import shutil
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from manifest import manifest

import graftline
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.data.version_writing import write_version
from graftline.errors import UserError
from graftline.files import write_json
from graftline.pipeline.cli import compose
from graftline.pipeline.retrain import Retrain
from graftline.pipeline.retraining.challengers import Challengers
from graftline.pipeline.retraining.changes import Changes
from graftline.pipeline.retraining.options import RetrainOptions
from graftline.pipeline.retraining.recipe_digest import CODE, recipe_digest
from graftline.pipeline.retraining.situation import require_images
from graftline.pipeline.retraining.trigger import NAMES, Trigger
from graftline.pipeline.train import Train
from graftline.processes import Terminated
from graftline.tracking.journal import Journal

DAY = 86_400.0


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("new_images>=200 or age>=30d", True),
        ("new_images >= 13", False),
        ("new_images>=12 and not age < 6w", False),
        ("(new_images<3 or new_classes==1) and age>900h", True),
        ("not (age>1min) or removed_images!=0", False),
        ("changed_labels>0.5", True),
    ],
)
def test_a_condition_is_what_it_says(text: str, holds: bool) -> None:
    values = {"new_images": 12.0, "new_classes": 1.0, "removed_images": 0.0, "changed_labels": 1.0, "age": 40 * DAY}
    assert Trigger(text).holds({name: partial(float, value) for name, value in values.items()}) is holds


def test_a_condition_asks_for_no_more_than_it_needs() -> None:
    """New images are counted by an ingest; the age is known."""

    def fail() -> float:
        raise AssertionError

    values = {**dict.fromkeys(NAMES, fail), "age": lambda: 3 * DAY}
    assert Trigger("age>=2d or new_images>=200").holds(values)
    assert not Trigger("age>=30d and (new_images>=200 or new_classes>0)").holds(values)


@pytest.mark.parametrize(
    "text",
    [
        *("", "age>=30", "images>3", "new_images>=3d", "new_images>=", "age>=3d or", "(age>3d", "age>3d)", "age=3d"),
        *("new_images>=1;age>1d", "3<new_images", "age>=-3d", "new_images>1 age>1d", "os.system(1)>0"),
    ],
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(
        UserError, match=r"RetrainOptions\.when=.* is no condition: compare new_images, .* 'new_images>="
    ):
        RetrainOptions(when=text)


def ingest(folder: Path) -> Ingest:
    return Ingest("colors", str(folder), Folder(), Split(), directory=str(folder.parent / "data"))


def made_version(tmp_path: Path, labels: dict[str, str]) -> DatasetVersion:
    """Return a version with a table of its own: content → label."""
    shas, names = zip(*sorted(labels.items()), strict=True)
    splits = [("train", "validation", "test")[number % 3] for number in range(len(shas))]
    return write_version(tmp_path, "pets", manifest(names, splits, sha256=shas), tuple(sorted(set(labels.values()))))[0]


def test_changes_are_told_with_what_follows_from_them(tmp_path: Path) -> None:
    before = made_version(tmp_path, {f"{number:02}": ("cat", "dog")[number % 2] for number in range(20)})
    labels = {f"{number:02}": ("cat", "dog", "cow")[number % 3] for number in range(2, 26)}
    changes = Changes.between(before, made_version(tmp_path, labels))
    assert (changes.before, changes.added, changes.removed, changes.relabeled) == (20, 6, 2, 12)
    changes.refuse_shrink(0.2, "photos")
    assert changes.sentences == [
        f"6 new images, {changes.tested} of them test images",
        "12 images with another label, in the split that they were in",
        "2 images gone, which are not trained or tested on any more",
        "new: class 'cow', so that the head is a new one",
    ]
    with pytest.raises(UserError, match=r"2 of 20 images are gone, more than 5 % .* See that photos is all there"):
        changes.refuse_shrink(0.05, "photos")


def test_a_retraining_on_the_same_images_says_what_else_is_new(tmp_path: Path) -> None:
    table = manifest(["cat", "dog"] * 3, ["train", "validation", "test"] * 2)
    before, _ = write_version(tmp_path, "pets", table, ("cat", "dog"))
    weighted, _ = write_version(tmp_path, "pets", table.assign(weight=2.0), ("cat", "dog"))
    assert Changes.between(before, before).sentences == ["the same images, other settings or code"]
    assert Changes.between(before, weighted).sentences == [
        "the same images, other names, groups, weights, splits or decoding"
    ]


def test_a_class_that_is_gone_with_its_images_is_no_class_that_was_renamed(tmp_path: Path) -> None:
    before = made_version(tmp_path, {f"{number:02}": ("cat", "cow", "dog")[number % 3] for number in range(30)})
    renamed = {f"{number:02}": ("pet", "cow", "pet")[number % 3] for number in range(30)}
    changes = Changes.between(before, made_version(tmp_path, renamed))
    assert (changes.merged, changes.lost_classes, changes.new_classes) == (("cat", "dog"), (), ("pet",))
    changes.refuse_shrink(0.2, "photos")
    assert "gone: classes 'cat', 'dog', whose images have another label now" in changes.sentences
    gone = {f"{number:02}": ("cat", "cow", "dog")[number % 3] for number in range(30) if number % 3}
    changes = Changes.between(before, made_version(tmp_path, gone))
    with pytest.raises(UserError, match="All images of the class 'cat' are gone: nothing is trained"):
        changes.refuse_shrink(0.9, "photos")


def test_an_empty_folder_is_one_that_is_not_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", os.path.exists)  # as from Python 3.14 on, for which no error is one
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    long = "x" * 300  # which no system reads, as it does not the folder of a network whose other end is gone
    for name, what in (
        ("nowhere", "is not there"),
        ("file/nowhere", "is not there"),
        ("empty", "is empty"),
        (long, r"cannot be read \(File name too lo.*\)"),
    ):
        folder = tmp_path / name
        told = rf"{what}: nothing is trained, and no image counts as removed\. See that it is mounted"
        with pytest.raises(UserError, match=rf"{told}\.$"):
            require_images(ingest(folder), allow_shrink=False)
        with pytest.raises(UserError, match=rf"{told}; RetrainOptions\.allow_shrink lets images be fewer, but these"):
            require_images(ingest(folder), allow_shrink=True)


def test_mistakes_are_found_before_anything_is_read() -> None:
    with pytest.raises(UserError, match=r"retrain\.when=age>3 is no condition"):
        compose("retrain", ["retrain.when=age>3"])
    with pytest.raises(UserError, match=r"notify\.url is no web address"):
        compose("retrain", ["notify.url=host"])
    with pytest.raises(UserError, match=r"tracking\.register"):
        compose("retrain", ["debug=fast"])
    with pytest.raises(UserError, match=r"gate\.margin is -1, it must be a share"):
        compose("retrain", ["gate.margin=-1"])
    for typed, said in (
        ("trainer.max_epochs=-4", r"^trainer\.max_epochs is -4: give a number of epochs"),
        ("optim.lr=-1", r"^optim\.lr is -1, it must be at least 0"),
        ("optim.lr=nan", r"^optim\.lr is nan, it must be at least 0"),
        ("evaluation.resamples=5", r"^evaluation\.resamples is 5, too few"),
        ("evaluation.batch_size=0", r"^evaluation\.batch_size is 0, it must be at least 1"),
        ("evaluation.seed=-1", r"^evaluation\.seed is -1, it must be at least 0"),
        ("seed=-1", r"^seed is -1, it must be"),
        ("minutes=0", r"^minutes is 0(\.0)?, it must be above 0"),
        ("minutes=inf", r"^minutes is inf, it must be above 0 and finite\.$"),
    ):
        with pytest.raises(UserError, match=said):
            compose("retrain", [typed])
    with pytest.raises(UserError, match=r"^optim\.lr is -1"):  # not at three in the night
        compose("schedule", ["every=hourly", "optim=sgd", "optim.lr=-1"])
    for wrong in ({"wait": -1.0}, {"max_shrink": 1.0}, {"max_shrink": float("nan")}):
        with pytest.raises(UserError, match="RetrainOptions"):
            RetrainOptions(**wrong)  # type: ignore[arg-type]


def composed(*overrides: str) -> Retrain:
    stage = compose("retrain", ["data=folder", "data.path=photos", *overrides]).stage
    assert isinstance(stage, Retrain)
    return stage


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_who_waits_for_a_retraining_is_told_that_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[KeyboardInterrupt]
) -> None:
    """By SIGTERM, as a schedule does after job.hours, and not by the Ctrl-C of one who sits there."""

    def stopped(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("graftline.pipeline.retrain.require_images", stopped)
    with pytest.raises(stop):
        composed("notify.command='cat > told.json'").run(tmp_path)
    if stop is KeyboardInterrupt:
        assert not list(tmp_path.iterdir())
        return
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["outcome"], told["reason"].partition(",")[0]) == ("failed", "it was stopped by SIGTERM")
    assert json.loads((tmp_path / "result.json").read_text()) == told


def test_the_gate_looks_at_models_where_they_are_trained() -> None:
    promotion = composed("trainer=cpu", "gate.margin=0.3")._promotion("pets", 7)
    assert (promotion.model, promotion.version, promotion.accelerator) == ("pets", 7, "cpu")
    assert promotion.gate.margin == 0.3


def write_ended_run(directory: Path, run_id: str) -> None:
    """Write what the outbox of a run holds that was killed and has sent all that it had."""
    write_json(directory / "outbox" / "run.json", {"run_id": run_id, "uri": "sqlite:///nowhere.db"})
    journal = Journal(directory / "outbox")
    journal.append({"kind": "status", "at": 0, "status": "KILLED"})
    journal.mark_sent(journal.unsent()[-1])
    journal.close()


def test_a_training_goes_on_with_the_weights_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm start begins anew once another version is champion, also where it is killed before it has a run."""
    version = made_version(tmp_path, {"0": "cat", "1": "dog", "2": "dog"})
    stage = instantiate({**composed()._nodes, "_target_": "graftline.pipeline.train.Train"}, _convert_="all")
    directory = tmp_path / "retrain"
    (directory / ".hydra").mkdir(parents=True)
    (directory / ".hydra" / "config.yaml").write_text("{}")
    (directory / ".hydra" / "overrides.yaml").write_text("[]")
    resumed = list[str | None]()

    def killed(self: Train, path: Path) -> None:
        resumed.append(self.train.resume)
        if len(resumed) != 3:  # that one is killed in Train.check
            write_ended_run(path, f"run {len(resumed)}")
        raise KeyboardInterrupt

    monkeypatch.setattr(Train, "run", killed)
    challengers = Challengers(stage, directory, version, "parent", None)
    one, two = "1/model.safetensors", "2/model.safetensors"
    for file in (one, one, two, two, two, None, None):
        with pytest.raises(KeyboardInterrupt):
            challengers._train("warm", replace(stage.backbone, weights="file", file=file))
    assert resumed == [None, "run 1", None, None, "run 4", None, "run 6"]


def test_what_a_retraining_depends_on_and_what_not() -> None:
    stage = composed()
    same: list[dict[str, Any]] = [
        {"name": "x"},
        {"tracking": {**stage.tracking, "uri": "http://host"}},
        {"retrain": {**stage.retrain, "when": "age>1d"}},
        {"notify": {**stage.notify, "command": "true"}},
        {"keep": {**stage.keep, "days": 3}},
        {"gate": {**stage.gate, "margin": 0.3}},  # make promote decides by it, on the model that there is
        {"backbone": {**stage.backbone, "weights_dir": "elsewhere"}},
        {"features": {**stage.features, "max_gb": 100.0, "directory": "/mnt/cache", "shared": "s3://bucket/cache"}},
        {"train": {**stage.train, "workers": 8, "checkpoint_minutes": 30.0}},
        {"evaluation": {**stage.evaluation, "resamples": 2000, "batch_size": 64, "seed": 1}},
    ]
    assert {replace(stage, **one)._recipe for one in same} == {stage._recipe}
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"backbone": {**stage.backbone, "name": "resnet50"}},
        {"features": {**stage.features, "precision": "float16"}},
        {"train": {**stage.train, "batch_size": 16}},
        {"retrain": {**stage.retrain, "start": "both"}},
    ]
    assert len({stage._recipe, *(replace(stage, **one)._recipe for one in others)}) == len(others) + 1
    assert recipe_digest({"a": 1}, "fresh") != recipe_digest({"a": 2}, "fresh")


def test_another_file_of_weights_of_the_same_name_is_another_recipe(tmp_path: Path) -> None:
    config = {"backbone": {"file": str(tmp_path / "weights.safetensors")}}
    found = {recipe_digest(config, "fresh")}
    for content in (b"1", b"2"):
        (tmp_path / "weights.safetensors").write_bytes(content)
        found.add(recipe_digest(config, "fresh"))
    assert len(found) == 3


def test_a_change_of_what_trains_is_another_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "graftline"
    shutil.copytree(Path(graftline.__file__).parent, root, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(graftline, "__file__", str(root / "__init__.py"))
    found = [recipe_digest({}, "fresh")]
    for name in ("pipeline/train.py", "pipeline/retraining/challengers.py", "training/fit.py", "backbones/backbone.py"):
        with (root / name).open("a") as file:
            file.write("#\n")
        found.append(recipe_digest({}, "fresh"))
    assert len(set(found)) == len(found)
    for name in ("report/style.py", "serving/check.py", "pipeline/promote.py"):
        (root / name).write_text("")
    assert recipe_digest({}, "fresh") == found[-1], "what shows, tracks and serves is none of it"


# modules of stages that a training uses to find, show and track, and that change nothing of the model
BESIDE = {
    *("bundles.source", "dataset_versions.parent", "dataset_versions.trained_on"),
    *("evaluating.beyond_scores", "evaluating.contender", "evaluating.earlier_model"),
    *("evaluating.scoring", "evaluating.slices"),
    *("program", "retraining.options", "retraining.trigger"),
    *("runs.choice", "runs.directory", "runs.missing", "runs.setup", "runs.stage_summaries", "stage"),
    *("training.drift_reference", "training.further_process", "training.model_card"),
    *("training.neighbors", "training.result", "training.run_log"),
}


def test_no_module_that_trains_is_forgotten() -> None:
    """All that a challenger's training imports of the stages is part of the recipe, or known to be none of it."""
    found, left = set[str](), ["retraining.challengers"]
    folder = Path(str(files("graftline.pipeline")))
    while left:
        found.add(name := left.pop())
        tree = ast.parse((folder / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
        imported = {
            node.module.removeprefix("graftline.pipeline.")
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("graftline.pipeline.")
        }
        left += imported - found
    part = {
        name.removeprefix("pipeline/").removesuffix(".py").replace("/", ".") for name in CODE if "pipeline/" in name
    }
    assert found - BESIDE == part
