"""Help and completion say what conf/ says, in the words of how we were called."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from graftline.console import console
from graftline.pipeline.__main__ import main
from graftline.pipeline.cli.completion import script
from graftline.pipeline.cli.conf_files import CONF, examples, groups, keys, options, stages
from graftline.pipeline.cli.hydra_conf import compose_config, session
from graftline.pipeline.cli.validate import validate

STAGES = stages([CONF])

pytestmark = pytest.mark.usefixtures("one_hydra")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_width", 200)


def test_help_lists_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for name, file in STAGES.items():
        assert re.search(rf"^{name} +{re.escape(examples(file)[0].text)} *$", told, re.MULTILINE)
    assert main([]) == 1, "nothing was asked for"
    assert capsys.readouterr().out == told


def test_make_help_says_the_same() -> None:
    told = subprocess.run(
        ["make", "help"], cwd=CONF.resolve().parent, capture_output=True, text=True, check=True
    ).stdout
    for name, file in STAGES.items():
        assert re.search(rf"^  {name} +{re.escape(examples(file)[0].text)}$", told, re.MULTILINE)


def test_a_stage_tells_its_groups_keys_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    told = capsys.readouterr().out
    assert re.search(
        r"^freeze +auto \(default\), all_but_head, first_stages, gradual, measured, names, none", told, re.M
    )
    assert re.search(r"^experiment +elpv_paper, finetune *$", told, re.MULTILINE)
    assert re.search(r"^train.batch_size=null +images per step and process;", told, re.MULTILINE)
    assert re.search(r"^bundle.golden=16 .*that the bundle keeps for graftline verify;", told, re.MULTILINE)
    assert "\ngraftline train debug=fast  # two epochs of two batches: does everything hold together?\n" in told


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.long
def test_what_help_tells_is_so(stage: str) -> None:
    """Keys and defaults are those of the configuration, and the examples are taken by the command line."""
    told = examples(STAGES[stage])
    assert told[0].text
    with session(stage):
        config = compose_config(stage, [])
    for key in keys(STAGES[stage]):
        assert key.name.split(".")[0] in {*config, "backbones"}, key
    for group, option in groups(STAGES[stage]).items():
        assert option is None or option in options([CONF], group)
    for example in told[1:]:
        _, name, *overrides = shlex.split(example.command)
        assert name == stage
        assert not re.search(rf"\bmake ({'|'.join(STAGES)})\b", example.text), "as whoever reads it would call it"
        needed = [f"{key}=x" for key in OmegaConf.missing_keys(config)]
        with session(stage):
            validate(stage, [*needed, *overrides])


def test_commands_are_those_of_whoever_started_us(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline", "predict", "--from-make"])
    monkeypatch.setenv("MAKEFLAGS", " -- images=i")
    assert main(["predict", "--from-make"]) == 1
    assert "model: needed; make predict model=..." in capsys.readouterr().out


def test_help_for_what_is_no_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tarin", "--help"]) == 1
    assert capsys.readouterr().out.startswith("tarin is not a stage: take one of audit, augment-preview, cache,")


def test_an_option_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--confdir", "x"]) == 1
    assert capsys.readouterr().out == "unrecognized arguments: --confdir x: graftline --help says what there is.\n"


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, and what readline does around it: the line, its words, and the answer on a line each."""
    readline = """
        compopt() { :; }
        COMP_LINE=$1 COMP_POINT=${#1}; shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _graftline
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    file = tmp_path_factory.mktemp("completion") / "complete.bash"
    file.write_text(script([CONF], "bash") + readline, encoding="utf-8")
    return file


def complete(file: Path, line: str) -> list[str]:
    """Return what bash would complete a line to, whose words it breaks at "=" too."""
    words = [word for word in re.split(r"(=)|\s+", line) if word]
    if line.endswith((" ", "=")):
        words.append("")
    return subprocess.run(["bash", str(file), line, *words], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing")
def test_bash_completes_stages_groups_options_and_keys(bash_script: Path) -> None:
    assert complete(bash_script, "graftline aug") == ["augment-preview"]
    assert set(complete(bash_script, "graftline ")) > {*STAGES, "config"}
    assert complete(bash_script, "graftline train freeze=m") == ["measured"], "behind = bash completes what follows"
    assert complete(bash_script, "graftline train freeze=all_but_head train.label") == ["train.label_smoothing="]
    assert complete(bash_script, "graftline train data.on_c") == ["data.on_conflict="], "from base.yaml"
    assert complete(bash_script, "graftline sync freeze") == [], "a group of another stage"


def test_the_scripts_of_other_shells_hold_the_same_words(folder_of_one_stage: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        text = script([CONF, folder_of_one_stage], shell)
        assert all(word in text for word in (*STAGES, "mine", "freeze=measured", "optim.weight_decay="))


@pytest.fixture
def folder_of_one_stage(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text("_target_: a.b\n", encoding="utf-8")
    return tmp_path
