"""Every command, key and argument that a message names is there: a way out that is none is worse than silence."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import pytorch_lightning as pl
from keys import STAGES, contexts, exists
from workplace import PROJECT

SOURCE = PROJECT / "src" / "graftline"
FILES = [
    *sorted(file for file in SOURCE.rglob("*.py") if "pipeline" not in file.relative_to(SOURCE).parts),
    *sorted((PROJECT / "pipeline").rglob("*.py")),
]
MAKE = re.compile(r"\bmake ([a-z][a-z-]*)")
ARGUMENT = re.compile(r"(?<![\w./-])([A-Z]\w*)\.([a-z_]\w*)")
CALL = re.compile(r"\b([A-Z]\w*)\((\w+=[^()]*)?\)")
KEY = re.compile(r"(?<![\w./=-])([a-z_]+(?:\.[a-z_0-9]+)+)(?![\w(])")
OPTION = re.compile(r"(?<![\w./<-])([a-z_]+)=[\w…]")
FILE_NAMES = (".csv", ".json", ".parquet", ".onnx", ".html", ".yaml")
ENGLISH = {"a", "it", "room", "sure", "them"}  # make room, make a picture
OF_A_NETWORK = {"groups"}  # the argument of alexnet that the text is about
OF_PILLOW = {"Image"}  # in the code that a model card shows
OF_PYTHON, OF_HTML = {"weights_only", "pretrained"}, {"class"}


@cache
def sentences() -> list[tuple[str, str]]:
    """Return the sentences in the code, each with its file's name, and … for what is filled in."""
    return [(text, file.name) for file in FILES for text in strings(ast.parse(file.read_text(encoding="utf-8")))]


def strings(tree: ast.Module) -> Iterator[str]:
    """Yield the strings that may be messages: no docstring, no HTML, more than one word."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else filled_in(part) for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        else:
            continue
        if " " in text and "<" not in text:
            yield text


def filled_in(part: ast.expr) -> str:
    """Return … for what a message is filled in with, or make where that is the word that commands begin with."""
    return "make" if isinstance(part, ast.FormattedValue) and ast.unparse(part.value) == "program()" else "…"


def named(pattern: re.Pattern[str]) -> list[Any]:
    """Return what a pattern finds in all messages, each with its file."""
    return sorted({(match, file) for text, file in sentences() for match in pattern.findall(text)})


@cache
def classes() -> dict[str, list[type]]:
    """Return the classes that messages may name; of a name in several modules, all."""
    found: dict[str, list[type]] = {"Trainer": [pl.Trainer]}
    wanted = {name for (name, *_), _ in [*named(ARGUMENT), *named(CALL)]}
    for file in FILES:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name in wanted:
                folder = SOURCE.parent if file.is_relative_to(SOURCE) else PROJECT
                module = ".".join(file.relative_to(folder).with_suffix("").parts)
                name = module if module.startswith("graftline.") else f"graftline.{module}"
                found.setdefault(node.name, []).append(getattr(importlib.import_module(name), node.name))
    return found


def test_there_is_something_to_check() -> None:
    assert len(named(ARGUMENT)) > 50
    assert all(named(pattern) for pattern in (MAKE, CALL, KEY, OPTION))


@pytest.mark.parametrize(("name", "file"), named(MAKE))
def test_a_command_is_one(name: str, file: str) -> None:
    rules = re.findall(r"^([a-z -]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert name in {*STAGES, *" ".join(rules).split(), *ENGLISH}, f"{file}: make {name}"


@pytest.mark.parametrize(("found", "file"), [one for one in named(ARGUMENT) if one[0][0] not in OF_PILLOW])
def test_an_argument_is_one_of_its_class(found: tuple[str, str], file: str) -> None:
    name, argument = found
    assert name in classes(), f"{file}: {name}.{argument} is of no class that there is"
    assert any(argument in inspect.signature(one).parameters for one in classes()[name]), f"{file}: {name}.{argument}"


@pytest.mark.parametrize(("found", "file"), named(CALL))
def test_a_choice_can_be_made(found: tuple[str, str], file: str) -> None:
    name, arguments = found
    assert name in classes(), f"{file}: {name}() is of no class that there is"
    given = {argument.partition("=")[0].strip(): None for argument in arguments.split(",") if argument}
    assert any(given.keys() <= inspect.signature(one).parameters.keys() for one in classes()[name]), file


@pytest.mark.parametrize(("key", "file"), named(KEY))
def test_a_dotted_key_exists(key: str, file: str) -> None:
    nodes = {str(node) for configs in contexts().values() for config in configs for node in config}
    assert key.partition(".")[0] not in nodes or key.endswith(FILE_NAMES) or exists(key), f"{file}: {key}"


@pytest.mark.parametrize(("key", "file"), named(OPTION))
def test_a_bare_key_exists(key: str, file: str) -> None:
    assert key in {"key", *OF_A_NETWORK, *OF_PYTHON, *OF_HTML} or exists(key), f"{file}: {key}="
