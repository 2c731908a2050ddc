"""Every command, key and argument that a message names is there: a way out that is none is worse than silence."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from keys import STAGES, contexts, exists
from workplace import PROJECT

SOURCE = PROJECT / "src" / "graftline"
LIBRARY = sorted(file for file in SOURCE.rglob("*.py") if "pipeline" not in file.relative_to(SOURCE).parts)
FILES = [*LIBRARY, *sorted((PROJECT / "pipeline").rglob("*.py"))]
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
def sentences() -> list[tuple[str, Path]]:
    """Return the sentences in the code, each with its file, and … for what is filled in."""
    return [(text, file) for file in FILES for text in strings(ast.parse(file.read_text(encoding="utf-8")))]


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
    return sorted({(match, file.name) for text, file in sentences() for match in pattern.findall(text)})


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


def test_a_command_is_one() -> None:
    rules = re.findall(r"^([a-z -]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    known = {*STAGES, *" ".join(rules).split(), *ENGLISH}
    assert [(name, file) for name, file in named(MAKE) if name not in known] == []


def test_an_argument_is_one_of_its_class() -> None:
    assert [one for one in named(ARGUMENT) if one[0][0] not in OF_PILLOW and not has_argument(*one[0])] == []


def has_argument(name: str, argument: str) -> bool:
    """Tell whether there is a class of this name that takes this argument."""
    return any(argument in inspect.signature(one).parameters for one in classes().get(name, []))


def test_a_choice_can_be_made() -> None:
    assert [one for one in named(CALL) if not can_be_made(*one[0])] == []


def can_be_made(name: str, arguments: str) -> bool:
    """Tell whether there is a class of this name that takes these arguments."""
    given = {argument.partition("=")[0].strip(): None for argument in arguments.split(",") if argument}
    return any(given.keys() <= inspect.signature(one).parameters.keys() for one in classes().get(name, []))


def test_a_dotted_key_exists() -> None:
    nodes = {str(node) for configs in contexts().values() for config in configs for node in config}
    found = [(key, file) for key, file in named(KEY) if key.partition(".")[0] in nodes and not key.endswith(FILE_NAMES)]
    assert [(key, file) for key, file in found if not exists(key)] == []


def test_a_bare_key_exists() -> None:
    known = {"key", *OF_A_NETWORK, *OF_PYTHON, *OF_HTML}
    assert [(key, file) for key, file in named(OPTION) if key not in known and not exists(key)] == []


def test_the_library_names_no_key_of_the_command_line() -> None:
    """But its classes and their arguments, which the command line words as keys."""
    folders = {folder.name for folder in (PROJECT / "conf").iterdir() if folder.is_dir()}
    groups = "|".join(sorted(folders - {"experiment"}))  # a file of the user's, for a command that cron takes
    typed = re.compile(rf"(?<![\w./-])(?:(?:{groups})(?:\.\w+)*|format)=[\w…\[]")
    said = [text for text, file in sentences() if file in LIBRARY and typed.search(text)]
    assert said == []
