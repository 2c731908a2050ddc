"""What the documentation tells its readers to type is right: the command line itself checks it, and runs nothing."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from keys import STAGES, contexts, exists, is_key
from pages import PAGES, Command, is_placeholder, read_page
from workplace import PROJECT

import graftline
from graftline.errors import UserError
from graftline.pipeline.api import override
from graftline.pipeline.cli.composed_stage import SINGLE
from graftline.pipeline.cli.hydra_conf import CONF, session
from graftline.pipeline.cli.resolve import FREE
from graftline.pipeline.cli.validate import validate
from graftline.pipeline.ui import choose

MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")
OTHER_PROGRAMS = {"git", "pip", "curl", "docker", "cp", "mkdir", "openssl", ".venv/bin/pre-commit", "python"}
KEY = re.compile(r"[a-z_]+(?:\.[a-z_0-9]+)+")
OPTIONS = re.compile(r"(?:'?(?:[a-z_]+\.)*[a-z_]+=\S+'? ?)+")
PYTHON = ("=True", "=False", "=None")

pytestmark = pytest.mark.usefixtures("one_hydra")

pages = pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)


@cache
def refuse(command: Command) -> str | None:
    """Return what the command line has against a stage's command, or None."""
    stage = "train" if command.name == "config" else command.name
    words = [word for word in command.words if not word.partition("=")[0].isupper()]
    try:
        with session(stage):
            jobs = validate(stage, words).jobs
        if stage in SINGLE and len(jobs) > 1:
            return f"asks for {len(jobs)} runs"
    except UserError as error:
        _, *mistakes = str(error).splitlines()
        serious = [mistake for mistake in mistakes if not (command.is_mention and ": needed; " in mistake)]
        return "\n".join(serious) or None
    return None


@pages
def test_every_command_is_taken(file: Path) -> None:
    for command in read_page(file).commands():
        if command.name in [*STAGES, "config"]:
            assert refuse(command) is None, command
            continue
        if command.name == "ui":
            assert choose(command.words)
            continue
        rule = re.search(rf"^{command.name}:.*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE)
        assert rule is not None, f"make {command.name}: no such rule"
        for word in command.words:
            variable = word.partition("=")[0]
            assert f"$({variable})" in MAKEFILE or f"$(or $({variable})," in rule[1], f"make {command.name} {word}"


@pages
def test_no_line_of_a_shell_goes_unchecked(file: Path) -> None:
    for line in read_page(file).shell:
        first = line.split()[0]
        assert first in {"make", "graftline"} | OTHER_PROGRAMS, f"{line}: teach this test how to check it"


@pages
def test_every_key_exists(file: Path) -> None:
    nodes = {str(key) for configs in contexts().values() for config in configs for key in config}
    for span in read_page(file).spans:
        if (
            KEY.fullmatch(span)
            and span.partition(".")[0] in nodes
            and Path(span).suffix not in (".yaml", ".json", ".md", ".onnx")
        ):
            assert exists(span), f"`{span}`: no such key"


@pages
def test_every_option_is_taken(file: Path) -> None:
    """Such as `freeze.number=6` in a sentence or a table: by some stage, with some choice of its group."""
    for span in read_page(file).spans:
        words = [word.strip("'") for word in span.split(" ")]
        if OPTIONS.fullmatch(span) and not any(is_placeholder(word) or word.endswith(PYTHON) for word in words):
            assert is_taken(tuple(words)), span


@cache
def is_taken(words: tuple[str, ...]) -> bool:
    return any(is_taken_by(stage, words) for stage in sorted(STAGES, key=lambda name: name != "train"))


def is_taken_by(stage: str, words: tuple[str, ...]) -> bool:
    keys = [key for key in (word.partition("=")[0] for word in words) if "." in key and not key.startswith(FREE)]
    for config in contexts()[stage]:
        if not all(is_key(config, key) for key in keys):
            continue  # to look for the nearest right name takes long
        try:
            with session(stage):
                validate(stage, words, base=config)
        except UserError as error:
            if any(": needed; " not in line for line in str(error).splitlines()[1:]):
                continue
        return True
    return False


def test_the_table_of_options_has_all_of_them() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", (PROJECT / "docs" / "options.md").read_text(), re.MULTILINE)
    told = {group: set(re.findall(r"`([\w.]+)`", text)) for group, text in rows}
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"):
        options = {file.stem for file in folder.glob("*.yaml")} - {"base"}
        assert options <= told.get(folder.name, set()), folder.name
    assert {str(key) for key in contexts()["train"][0]} - {"_target_", "weights", "name"} <= set(told)


@pages
def test_python_is_right(file: Path) -> None:
    """It compiles, what it imports is there, and what it calls of graftline's takes these arguments."""
    for source in read_page(file).python:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                exec(ast.unparse(node), {})  # a submodule, too, is an attribute once it is imported
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("graftline.train", "graftline.load"):
                call = getattr(graftline, ast.unparse(node.func).partition(".")[2])
                inspect.signature(call).bind(*node.args, **{str(word.arg): word.value for word in node.keywords})
                values = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords if word.arg}
                words = tuple(override(key, value) for key, value in values.items())
                assert refuse(Command("train", words, is_mention=True)) is None, ast.unparse(node)


def test_the_readme_reads_the_same_images_until_the_model_is_used(tmp_path: Path) -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")

    def commands_of(part: str) -> list[Command]:
        section = tmp_path / "section.md"
        section.write_text(part, encoding="utf-8")
        return [command for command in read_page(section).commands() if not command.is_mention]

    commands = commands_of(text.partition("\n## Then\n")[2].partition("\nUse the model")[0])
    readers = [command for command in commands if command.name in STAGES and "data" in contexts()[command.name][0]]
    assert {"train", "search", "evaluate", "ensemble", "audit"} <= {command.name for command in readers}
    for command in readers:
        assert {"data=folder", "data.path=~/photos"} <= set(command.words), command
    deciding = [
        command
        for command in commands_of(text.partition("\n## In production\n")[2].partition("\n```")[0])
        if command.name in ("promote", "history", "rollback")
    ]
    assert {"history", "rollback"} <= {command.name for command in deciding}
    assert all("model=photos" in command.words for command in deciding), "the sample's model is registered by now"


def links(text: str) -> Iterator[str]:
    yield from (link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link)


def test_links_of_the_readme_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        for link in links((PROJECT / name).read_text(encoding="utf-8")):
            assert (PROJECT / link).exists(), f"{name}: {link}"


def test_the_site_is_built_without_a_warning_and_asks_for_nothing_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "docs", tmp_path / "docs")
    for name in ("src", "conf", "pipeline", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        (tmp_path / name).symlink_to(PROJECT / name)
    shutil.copyfile(PROJECT / "mkdocs.yml", tmp_path / "mkdocs.yml")
    program = [str(Path(sys.executable).with_name("zensical")), "build", "--strict", "--config-file", "mkdocs.yml"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    html = {
        str(file.relative_to(tmp_path / "site")): file.read_text(encoding="utf-8")
        for file in (tmp_path / "site").rglob("*.html")
    }
    assert "test accuracy" in html["index.html"], "README's run is shown"
    for name, page in html.items():
        assert not re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?https?://", page), name
        assert not re.search(r"<p>:::|--8&lt;--", page), name
