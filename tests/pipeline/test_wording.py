"""What the library says of its arguments, and what a user of the command line reads."""

import logging

import pytest
from omegaconf import DictConfig, OmegaConf

from graftline.console import show_log
from graftline.errors import UserError
from graftline.pipeline.cli import compose, wording
from graftline.pipeline.cli.wording import reword, worded


@pytest.fixture(scope="module")
def config() -> DictConfig:
    return compose("train", ["freeze=none", "backbone=efficientnet"]).config


@pytest.mark.parametrize(
    ("library", "command_line"),
    [
        ("Choose another Features.directory.", "Choose another features.directory."),
        (
            "Features.max_gb=20 is too few, or Features.cache=False",
            "features.max_gb=20 is too few, or features.cache=false",
        ),
        ("Ingest.on_invalid='leave_out' leaves them out.", "data.on_invalid=leave_out leaves them out."),
        ("Recipe.patience=None never stops", "train.patience=null never stops"),
        ("Split.train + Split.test is 0.9", "data.split.train + data.split.test is 0.9"),
        ("RandomCrop.scale and Policy.crop.scale", "augment.crop.scale and augment.crop.scale"),
        ("WeightsStore.dir, Trainer.max_epochs, AdamW.lr", "weights.dir, trainer.max_epochs, optim.lr"),
        ("Backbone.options.phi and ScaledBackbone.phi", "backbone.options.phi and backbone.phi"),  # a base class too
        (
            "Change the arguments of AdamW or the arguments of SGD.",
            "Change what is below optim or the arguments of SGD.",
        ),
        ("warmup_cosine.final_factor is 2", "schedule.final_factor is 2"),
        ("Train.seed is -1.", "seed is -1."),
        ("Nothing.epochs, FirstStages.number", "freeze.epochs, freeze.number"),  # also of another choice
        ("Take Nothing() or AllButHead(), Elpv().", "Take freeze=none or freeze=all_but_head, data=elpv."),
        ("Features(cache=False) does without", "features=live does without"),
        ("fetch('resnet50') or fetch()", "graftline fetch-weights backbone=resnet50 or graftline fetch-weights"),
        (
            f"Run {'0a' * 16} has unsent records: sync() sends",
            f"Run {'0a' * 16} has unsent records: graftline sync run_id={'0a' * 16} sends",
        ),
        ("/x/Features.max_gb and Names(frozen=['a', b])", "/x/Features.max_gb and Names(frozen=['a', b])"),
        # what is none of ours stays
        (
            "model.onnx, 0.5, e.g. Nobody.knows, Features.nothing",
            "model.onnx, 0.5, e.g. Nobody.knows, Features.nothing",
        ),
        ("Policy() and Backbone.check() and Unknown(a=1)", "Policy() and Backbone.check() and Unknown(a=1)"),
        ("data.path=DIR and make train", "data.path=DIR and make train"),
    ],
)
def test_the_words_of_both(config: DictConfig, library: str, command_line: str) -> None:
    assert reword(config, library) == command_line


def test_a_command_that_looks_for_a_run_says_where_it_is_tracked(config: DictConfig) -> None:
    typed = ["seed=3", "tracking=server", "tracking.uri=http://me:secret@mlflow:5000"]
    told = reword(config, f"2 records of run {'0a' * 16} wait: sync() sends them.", typed)
    command = f"graftline sync run_id={'0a' * 16} tracking=server 'tracking.uri=http://me:***@mlflow:5000'"
    assert told == f"2 records of run {'0a' * 16} wait: {command} sends them."


def test_a_class_that_occurs_twice_is_named_by_both_keys_and_one_of_a_list_by_the_group() -> None:
    split = {"_target_": "graftline.data.split.Split", "train": 0.5}
    config = OmegaConf.create({"first": split, "deep": {"second": split}})
    assert reword(config, "Split.train=None") == "first.train=null or deep.second.train=null"
    many = OmegaConf.create({f"s{number}": split for number in range(4)})
    assert reword(many, "Split.train is 2") == "Split.train is 2"
    backbones = compose("cost", ["backbone=resnet18,nin"]).config
    assert reword(backbones, "Backbone.image_size is 0") == "backbone.image_size is 0"


@pytest.mark.parametrize(
    ("stage", "typed"), [("retrain", []), ("schedule", ["every=hourly"]), ("ensemble", ["members=2"])]
)
def test_what_a_training_says_is_said_of_the_keys_of_each_stage_that_trains(stage: str, typed: list[str]) -> None:
    """Retrain and schedule are no kind of `Train`, as they do not load it before it is known that one begins."""
    assert reword(compose(stage, typed).config, "Train.minutes=5, Train.seed") == "minutes=5, seed"


def test_errors_and_log_lines_are_worded_while_a_stage_runs(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("graftline.features")
    composed = compose("train")

    def fail() -> None:
        logger.warning("Features.max_gb is small")
        raise RuntimeError("of a library in between") from UserError("Features.max_gb is -1.")

    with pytest.raises(UserError, match=r"^features\.max_gb is -1"), worded(composed.config):
        fail()
    logger.info("Features.max_gb is as the library says")
    output = capsys.readouterr().out
    assert "! features.max_gb is small" in output
    assert "Features.max_gb is as" in output
    show_log()


def test_what_is_wrong_with_a_value_is_said_of_its_key() -> None:
    with pytest.raises(UserError, match=r"features\.views is -1"):
        compose("train", ["features.views=-1"])


def test_other_choices_are_looked_at_only_where_the_configuration_has_no_such_key(
    config: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are all classes that there are, and to import these takes seconds."""
    looked: list[str] = []

    def look() -> list[wording.Target]:
        looked.append("all")
        return []

    monkeypatch.setattr(wording, "_choices", look)
    assert reword(config, "Split.validation's share") == "data.split.validation's share"
    assert looked == []
    assert reword(config, "FirstStages.number") == "FirstStages.number"
    assert looked == ["all"]
