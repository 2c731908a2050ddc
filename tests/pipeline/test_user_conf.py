"""A user's own folder of configuration adds options, groups and stages; ours stay what they are."""

import json
import shlex
from pathlib import Path

import pytest

from graftline.errors import UserError
from graftline.pipeline.__main__ import main
from graftline.pipeline.cli import compose
from graftline.pipeline.cli.arguments import read
from graftline.pipeline.cli.conf_files import CONF
from graftline.pipeline.runs.directory import RunDirectory

FILES = {
    "backbone/ours.yaml": "_target_: graftline.backbones.backbone.Backbone\nname: lenet5\nimage_size: 28\n",
    "machine/small.yaml": "# @package _global_\ntrain:\n  batch_size: 8\n  workers: 0\n",
    "experiment/tiny.yaml": "# @package _global_\ndefaults:\n  - override /backbone: test_efficientnet\n\nseed: 7\n",
    "tidy.yaml": (
        "# make tidy [key=value ...]        forget what is old\n_target_: graftline.pipeline.cache.Cache\ndefaults:\n"
        "  - _self_\n  - features: cached\n  - hydra: default\n\nclear: unused\ndays: 7 # of age\n"
    ),
    "notes.yaml": "author: nobody\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / "ours" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ours" / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ours"


def test_options_and_groups_are_added(folder: Path) -> None:
    config = compose("train", ["backbone=ours", "machine=small", "train.batch_size=4"], folder).config
    assert (config.backbone.name, config.backbone.image_size, config.backbone.weights_dir) == ("lenet5", 28, "weights")
    assert (config.train.batch_size, config.train.workers) == (4, 0)


def test_an_overlay_may_take_a_name_of_timms(folder: Path) -> None:
    config = compose("train", ["experiment=tiny"], folder).config
    assert (config.backbone.name, config.seed) == ("test_efficientnet", 7)


def test_a_file_with_a_target_at_the_root_is_a_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tidy", "--config-dir", str(folder), "days=1"]) == 0
    directory = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert json.loads((directory / "result.json").read_text(encoding="utf-8"))["stage"] == "tidy"
    with pytest.raises(UserError, match=r"notes is not a stage: take one of .*sync, tidy, train"):
        compose("notes", config_dir=folder)


def test_a_schedule_knows_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["schedule", "--config-dir", "ours", "every=hourly", "backbone=ours"]
    assert main(typed) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if " -m graftline retrain " in line)
    words = shlex.split(line.partition(" -m graftline ")[2].partition(" >> ")[0])
    found = read(words)
    assert (found.config_dir, found.overrides) == (folder, ["backbone=ours"])
    assert f"graftline retrain --config-dir {folder} backbone=ours" in out
    assert main([*typed, "engine=kubernetes"]) == 1
    assert f"--config-dir={folder} is a folder of this machine, which no pod sees" in capsys.readouterr().out


def test_the_command_that_does_it_again_knows_the_folder(folder: Path) -> None:
    composed = compose("tidy", ["days=1"], Path("ours"))
    composed.run()
    files = RunDirectory(composed.directory)
    assert files.command("graftline", "tidy") == f"graftline tidy --config-dir {folder} days=1"
    compose("cache", ["days=1"]).run(composed.directory)
    assert files.command("graftline", "cache") == "graftline cache days=1"


def test_the_command_that_does_it_again_keeps_what_was_left_out(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    files.overrides.parent.mkdir()
    files.overrides.write_text(json.dumps(["~optim.weight_decay", "seed=1", "data=folder"]), encoding="utf-8")
    assert files.command("graftline", "train") == "graftline train '~optim.weight_decay' seed=1 data=folder"
    of_some = files.command("graftline", "audit", group="(optim|data)")
    assert of_some == "graftline audit '~optim.weight_decay' data=folder"


def test_the_command_that_does_it_again_has_lists_as_they_are_typed(tmp_path: Path) -> None:
    typed = ["runs=best:3,models:/dusk/1", "crops=1,d4", "data=folder", "data.path=photos"]
    composed = compose("evaluate", typed)
    files = RunDirectory(tmp_path)
    files.overrides.parent.mkdir()
    files.overrides.write_text(json.dumps(composed.overrides), encoding="utf-8")
    again = files.command("graftline", "evaluate")
    assert set(typed) < set(again.split())
    assert compose("evaluate", shlex.split(again)[2:]).overrides == composed.overrides


def test_conf_of_the_working_directory_is_taken_by_itself(folder: Path) -> None:
    folder.rename(folder.with_name("conf"))
    assert compose("train", ["machine=small"]).config.train.batch_size == 8


def test_conf_of_the_clone_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONF.resolve().parent)
    with pytest.raises(UserError, match="mashine"):
        compose("train", ["mashine=small"])


def test_mistakes_name_what_a_user_has(folder: Path) -> None:
    with pytest.raises(UserError) as error:
        compose("train", ["machine=smal", "backbone=our"], folder)
    assert "machine=smal: no such machine; did you mean small?" in str(error.value)
    assert "backbone=our: no such backbone; did you mean ours" in str(error.value)


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"--config-dir={tmp_path / 'nowhere'}"]) == 1
    assert capsys.readouterr().out.startswith("--config-dir")


def test_an_overlay_may_choose_an_optimizer_by_name(folder: Path) -> None:
    (folder / "experiment").mkdir(exist_ok=True)
    overlay = folder / "experiment" / "lion.yaml"
    overlay.write_text("# @package _global_\ndefaults:\n  - override /optim: lion\n", encoding="utf-8")
    (folder / "experiment" / "none.yaml").write_text("defaults:\n  - override /optim: adahessian\n", encoding="utf-8")
    assert compose("train", ["experiment=lion"], folder).config.optim["_target_"] == "timm.optim.Lion"


def test_ours_stay_ours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "optim").mkdir()
    (folder / "optim" / "sgd.yaml").write_text("_target_: torch.optim.LBFGS\n", encoding="utf-8")
    (folder / "train.yaml").write_text((CONF / "train.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert compose("train", ["optim=sgd"], folder).config.optim["_target_"] == "torch.optim.SGD"
    told = capsys.readouterr().out
    assert f"{folder / 'optim' / 'sgd.yaml'} is not read: graftline has its own of that name." in told
    assert "train.yaml" not in told, "it is the same"
