"""What the user types: all mistakes at once, each with the nearest right name, before anything heavy starts."""

import os
import subprocess
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from graftline.errors import UserError
from graftline.pipeline.__main__ import main
from graftline.pipeline.cli.hydra_conf import expand_home, session
from graftline.pipeline.cli.make import from_makeflags
from graftline.pipeline.cli.parse import line
from graftline.pipeline.cli.validate import ValidatedOverrides, validate

pytestmark = pytest.mark.usefixtures("one_hydra")


def check(stage: str, overrides: list[str]) -> ValidatedOverrides:
    with session(stage):
        return validate(stage, overrides)


def lines(checked: ValidatedOverrides) -> list[str]:
    return [line(override) for override in checked.overrides]


def mistakes(*overrides: str, stage: str = "train") -> list[str]:
    with pytest.raises(UserError) as caught:
        check(stage, list(overrides))
    head, *lines = str(caught.value).splitlines()
    assert "nothing was started" in head
    return [line.strip() for line in lines]


def test_what_is_right_passes_as_typed() -> None:
    typed = ["backbone=resnet18", "freeze=all_but_head", "trainer.max_epochs=3", "seed=0"]
    checked = check("train", typed)
    assert sorted(lines(checked)) == sorted(typed)
    assert len(checked.jobs) == 1
    assert checked.config.backbone.name == "resnet18"
    assert checked.config.trainer.max_epochs == 3


def test_any_timm_name_is_a_backbone_with_and_without_its_tag() -> None:
    for name in ("resnet18", "resnet50.a1_in1k", "vit_base_patch16_clip_224.openai", "test_efficientnet"):
        assert check("train", [f"backbone={name}"]).config.backbone.name == name


def test_any_timm_name_is_an_optimizer_with_settings_of_its_own() -> None:
    """The keys are the optimizer's; no learning rate is what goes with the recommended one."""
    config = check("train", ["optim=lion", "optim.betas=[0.95,0.98]"]).config
    assert OmegaConf.to_container(config.optim) == {
        "_target_": "timm.optim.Lion",
        "_partial_": True,
        "lr": None,
        "weight_decay": 0.25,
        "betas": [0.95, 0.98],
    }
    swept = check("train", ["optim=muon,asgd,adamw", "lr=0.1"])
    assert swept.jobs == [[f"optim={name}", "++optim.lr=0.1"] for name in ("muon", "asgd", "adamw")]


def test_an_optimizer_that_cannot_be_had_is_refused_with_the_reason_or_the_nearest() -> None:
    assert mistakes("optim=lionn") == ["optim=lionn: no such optim; did you mean lion?"]
    assert mistakes("optim=AdamW,adahessian") == [
        "optim=adahessian: it needs second derivatives, which no fit computes"
    ]
    assert mistakes("optim=AdamW")[0].startswith("optim=AdamW: no such optim; did you mean adamw")
    assert mistakes("optim=muon", "optim.beta=1") == ["optim.beta=1: no such key; did you mean optim.betas?"]


def test_our_files_take_precedence_over_timms_names() -> None:
    assert check("train", ["backbone=efficientnet_lite0"]).config.backbone.name == "tf_efficientnet_lite0"


def test_all_mistakes_are_reported_together() -> None:
    found = mistakes(
        "backbone=efficientnet_bo",
        "freeze=all_but_heads",
        "trainer.max_epoch=3",
        "train.batch_size=many",
        "sed=1",
    )
    assert found == [
        (
            "backbone=efficientnet_bo: no such backbone; "
            "did you mean efficientnet_b0 or efficientnet or efficientnet_b1?"
        ),
        "freeze=all_but_heads: no such freeze; did you mean all_but_head?",
        "trainer.max_epoch=3: no such key; did you mean trainer.max_epochs?",
        "train.batch_size=many: must be a whole number or null",
        "sed=1: no such key; did you mean seed or data.split.seed or evaluation.seed?",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lr=0.1", "optim.lr"),
        ("backbone.img_size=224", "backbone.image_size"),
        ("data=elvp", "elpv"),
        ("augment=storng", "strong"),
    ],
)
def test_the_nearest_right_name_is_given(override: str, expected: str) -> None:
    (line,) = mistakes(override)
    assert line.startswith(f"{override.partition('=')[0]}")
    assert expected in line.partition("did you mean")[2]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.patience=soon", "a whole number or null"),
        ("train.class_weights=perhaps", "true or false"),
        ("backbone.weights=internet", "auto or packaged or file or directory or hub or none"),
        ("backbone.image_size=2.5", "a whole number or auto or null"),
        ("data.on_invalid=ignore", "leave_out or fail"),
        ("train.label_smoothing=[1]", "a number"),
        ("train.class_weights=no", "true or false"),
        ("train.class_weights={cat: 2}", "true or false"),
        ("seed={first: 1}", "a whole number"),
        ("train.batch_size={train: 8}", "a whole number or null"),
        ("tracking.register=off", "true or false"),
        ("train.batch_size=16.0", "a whole number or null"),
        ("train.batch_size=true", "a whole number or null"),
        ("data.source=7", "Source"),
    ],
)
def test_a_wrong_type_says_what_is_wanted(override: str, expected: str) -> None:
    (line,) = mistakes(override)
    assert line.endswith(f"must be {expected}")


def test_a_mapping_is_told_as_it_is_typed() -> None:
    told = mistakes("decision=cost", "decision.costs=[[0,1],[10,0]]")
    assert told == ["decision.costs=[[0, 1], [10, 0]]: must be {name: {name: a number}}"]


def test_an_interval_is_a_mistake_as_others() -> None:
    assert mistakes("lr=interval(1e-4,1e-2)", "sed=1") == [
        "optim.lr=interval(1e-4,1e-2): an interval is no list of values; name some, with commas between",
        "sed=1: no such key; did you mean seed or data.split.seed or evaluation.seed?",
    ]


def test_never_a_list_of_a_thousand_names() -> None:
    (line,) = mistakes("backbone=zzzzqqq")
    assert len(line) < 200


def test_a_mandatory_value_is_named() -> None:
    assert mistakes("data=folder") == ["data.path: needed; graftline train data.path=..."]
    assert mistakes(stage="predict") == [
        "images: needed; graftline predict images=...",
        "model: needed; graftline predict model=...",
    ]


@pytest.mark.parametrize("path", ["~/photos", "/a b/photos (2)", "/photos/räket", "it's", "C:\\photos"])
def test_a_path_needs_no_quotes(path: str) -> None:
    checked = check("train", ["data=folder", f"data.path={path}"])
    assert checked.config.data.path == path.replace("~", str(Path.home()))
    assert check("train", lines(checked)).config == checked.config


PATHS = {  # stage → what it needs, and all of its keys that are paths
    "train": (
        ["data=archive", "tracking=local"],
        [
            "data.path",
            "data.parent",
            "data.directory",
            "data.source.cache",
            "backbone.file",
            "weights.dir",
            "features.directory",
            "tracking.artifacts",
        ],
    ),
    "explain": ([], ["bundle"]),
    "predict": ([], ["model", "images", "out"]),
    "export": ([], ["model", "out"]),
    "evaluate": ([], ["bundle", "data.path"]),
    "verify": ([], ["bundle"]),
    "fetch-weights": ([], ["weights.dir"]),
    "cache": ([], ["features.directory"]),
}


@pytest.mark.parametrize("stage", PATHS)
def test_a_tilde_is_the_home_folder_in_each_path(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/pat")
    needs, keys = PATHS[stage]
    checked = check(stage, [*needs, *(f"{key}=~/x{number}" for number, key in enumerate(keys))])
    found = [OmegaConf.select(checked.config, key) for key in keys]
    assert found == [f"/home/pat/x{number}" for number in range(len(keys))]
    if stage == "train":
        assert checked.config.backbone.weights_dir == "/home/pat/x5"


def test_a_tilde_is_nothing_else_where_it_is_none() -> None:
    config = OmegaConf.create({"a": ["~/x", {"b": "~"}], "c": "???", "d": None, "e": "${c}", "f": "x~/y", "g": "~x"})
    home = str(Path.home())
    assert expand_home(config)["a"] == [f"{home}/x", {"b": home}]
    assert (config.f, config.g, OmegaConf.is_missing(config, "c")) == ("x~/y", "~x", True)
    assert expand_home("sqlite:///~/mlflow.db") == f"sqlite:///{home}/mlflow.db"


def test_a_path_in_the_place_of_a_source_is_understood(tmp_path: Path) -> None:
    for name in ("labels.tsv", "photos.zip"):
        (tmp_path / name).touch()
    meant = {tmp_path: "folder", tmp_path / "labels.tsv": "table", tmp_path / "photos.zip": "archive"}
    for path, option in meant.items():
        assert mistakes(f"data={path}")[0].endswith(f"did you mean data={option} data.path={path}?")


@pytest.mark.parametrize(
    "typed", ["2024", "2024_01", "1e3", "1_000", "007", ".5", "0x10", "nan", "true", "[a,b]", "it's", "int(3)"]
)
def test_text_stays_as_it_was_typed(typed: str) -> None:
    keys = ("name", "data.path", "tracking.experiment")
    checked = check("train", ["data=folder", *(f"{key}={typed}" for key in keys)])
    assert [OmegaConf.select(checked.config, key) for key in keys] == [typed] * 3
    assert check("train", lines(checked)).config == checked.config  # as a run that is resumed reads it
    assert OmegaConf.create(OmegaConf.to_yaml(checked.config)) == checked.config


def test_each_of_several_texts_stays_as_it_was_typed() -> None:
    assert check("train", ["name=007,1e3,null"]).jobs == [["name='007'"], ["name='1e3'"], ["name=null"]]
    assert check("train", ["name=null"]).config.name is None


@pytest.mark.parametrize("override", ["trainer.max_epochs='${sed}'", "optim.lr=interval(0,1)", "hydra.foo=1"])
def test_whatever_hydra_says_is_one_line(override: str) -> None:
    with pytest.raises(UserError) as caught:
        check("train", [override])
    assert len(str(caught.value).splitlines()) == 2


def test_ranges_and_patterns_ask_for_several_runs() -> None:
    assert check("train", ["seed=range(0,3)"]).jobs == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert check("train", ["optim.lr=choice(0.1,0.2)"]).jobs == [["optim.lr=0.1"], ["optim.lr=0.2"]]
    assert check("cost", ["backbone=glob(efficientnet_lite*)"]).jobs == [
        [f"backbone=efficientnet_lite{number}"] for number in range(3)
    ]
    assert mistakes("backbone=glob(zz*)") == ["backbone=glob(zz*): stands for no value"]
    assert mistakes("optim.lr=range(1,1)") == ["optim.lr=range(1,1): stands for no value"]
    assert mistakes("train.batch_size=range(0.5,2,1)") == [
        "train.batch_size=0.5: must be a whole number or null",
        "train.batch_size=1.5: must be a whole number or null",
    ]


def test_the_same_key_twice_is_the_last_one() -> None:
    assert check("train", ["seed=0,1", "seed=2"]).jobs == [["seed=2"]]
    checked = check("train", ["backbone=resnet18", "backbone.weights=none", "backbone.weights=hub"])
    assert checked.config.backbone.weights == "hub"


def test_what_is_no_override_at_all() -> None:
    (line,) = mistakes("backbone")
    assert "key=value" in line
    (line,) = mistakes("freeze.depths=[1")
    assert "a list" in line


def test_an_argument_of_a_target_needs_no_plus() -> None:
    checked = check("train", ["trainer.limit_train_batches=2", "optim.eps=0.001"])
    assert checked.config.trainer.limit_train_batches == 2
    assert checked.config.optim.eps == 0.001


@pytest.mark.parametrize(
    ("typed", "full"),
    [
        (["max_epochs=3"], ["trainer.max_epochs=3"]),
        (["lr=0.003"], ["optim.lr=0.003"]),
        (["limit_train_batches=2"], ["++trainer.limit_train_batches=2"]),  # of the target: the file leaves it out
        (["backbone=efficientnet", "phi=1.5"], ["backbone=efficientnet", "backbone.phi=1.5"]),
        (["phi=0,1", "backbone=efficientnet"], ["backbone=efficientnet", "backbone.phi=0,1"]),
        (["backbone=alexnet", "groups=2"], ["backbone=alexnet", "backbone.options.groups=2"]),
        (["data=folder", "path=~/räket"], ["data=folder", "data.path='~/räket'"]),
        (["name=2024", "seed=1"], ["name='2024'", "seed=1"]),  # keys of the stage itself stay what they are
    ],
)
def test_a_bare_key_is_the_only_one_of_that_name(typed: list[str], full: list[str]) -> None:
    checked = check("train", typed)
    assert lines(checked) == full
    assert check("train", full).config == checked.config  # what a run stores, and is resumed with


@pytest.mark.parametrize(
    ("backbone", "key", "value"),
    [("googlenet", "aux_heads", False), ("resnet50d", "output_stride", 8), ("nin", "conv_drop_rate", 0.1)],
)
def test_a_networks_own_options_need_not_stand_in_its_file(backbone: str, key: str, value: object) -> None:
    checked = check("train", [f"backbone={backbone}", f"backbone.options.{key}={str(value).lower()}"])
    assert checked.config.backbone.options == {key: value}
    assert check("train", lines(checked)).config == checked.config
    instantiate(checked.config.backbone, weights="none").check()  # which refuses those that a network does not have
    several = check("train", [f"backbone={backbone},alexnet", f"backbone.options.{key}={str(value).lower()}"])
    assert len(several.jobs) == 2
    assert mistakes(f"backbone={backbone}", "backbone.optins.x=1") == [
        "backbone.optins.x=1: no such key; did you mean backbone.options?"
    ]


def test_a_bare_key_that_several_have_is_not_guessed() -> None:
    assert mistakes("directory=/tmp/x", "phi=1.5") == [
        "directory=/tmp/x: may be data.directory or features.directory; write the one that is meant",
        "phi=1.5: no such key",  # the default backbone has none
    ]
    assert mistakes("backbone=efficientnet", "phi=x") == ["backbone.phi=x: must be a number or null"]


def test_commas_ask_for_several_runs_and_brackets_do_not() -> None:
    assert check("train", ["backbone=efficientnet_lite0,efficientnet_lite1"]).jobs == [
        ["backbone=efficientnet_lite0"],
        ["backbone=efficientnet_lite1"],
    ]
    assert check("train", ["seed=0,1,2"]).jobs == [["seed=0"], ["seed=1"], ["seed=2"]]
    table = "freeze.depths=[0.5,0.25]"
    assert check("train", ["freeze=auto", table]).jobs == [["freeze=auto", table]]
    assert mistakes("backbone=efficientnet,resnet18", "phi=1.0") == ["backbone.phi: resnet18 has no such key"]
    four = check("train", ["backbone=lenet5,resnet18", "backbone.weights=none", "freeze=none,gradual"]).jobs
    assert [job[:2] for job in four] == [
        [f"backbone={backbone}", f"freeze={rule}"]
        for backbone in ("lenet5", "resnet18")
        for rule in ("none", "gradual")
    ]
    (line,) = mistakes("backbone=resnet18,resnet19")
    assert line.startswith("backbone=resnet19: no such backbone; did you mean resnet18 or ")


@pytest.mark.parametrize(
    ("key", "uri"),
    [
        ("tracking.uri", "http://me:sesame@server:5000"),
        ("uri", "https://me:sesame@server"),
        ("++tracking.uri", "'postgresql://me:sesame@host/db'"),
        ("tracking.uri", "postgresql://host/db?user=me&password=sesame"),
    ],
)
def test_a_password_in_an_address_is_refused_and_kept_nowhere(
    key: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tracking=server", f"{key}={uri}"]) == 1
    out = capsys.readouterr().out
    assert f"{key.lstrip('+')}: a password in an address is kept in files" in out
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in out
    texts = [out, *(file.read_text() for file in tmp_path.rglob("*") if file.is_file())]
    assert not [text for text in texts if "sesame" in text]


def test_make_hands_values_on_as_typed(tmp_path: Path) -> None:
    makefile = tmp_path / "Makefile"
    makefile.write_text("show:\n\t@printenv MAKEFLAGS\n")
    typed = [
        "backbone=efficientnet_b0,resnet18",
        "freeze.names=[blocks.0,blocks.1]",
        "data.path=my photos",
        "name='it is'",
        'data.name="2024"',
        "x=a=b",
        "path=back\\slash",
        "+trainer.max_steps=3",
        "dollar=$HOME",
    ]
    command = ["make", "-f", str(makefile), "show", "PYTHON=python3.12", *typed, "--"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    flags = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.rstrip("\n")
    assert from_makeflags(flags) == typed
