"""Wording: what the library says about its arguments, in the words of the command line.

The library names an argument by its class (``Features.max_gb``), and a choice by what it is made with (``Nothing()``).
On the command line these are the key ``features.max_gb`` and the choice ``freeze=none``. Both are read off the
configuration, whose nodes name their classes as ``_target_``; what is found in none of them stays as it is.
"""

import ast
import functools
import inspect
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from graftline.console import show_log
from graftline.errors import UserError
from pipeline.cli.gather import GROUP, LIST
from pipeline.cli.guard import find
from pipeline.cli.hydra_conf import CONF
from pipeline.cli.parameters import has_key, parameters

ARGUMENT = re.compile(r"\b([A-Za-z_]\w*)\.(\w+)((?:\.\w+)*)(?:=('[^']*'|(?:True|False|None)\b))?")
CALL = re.compile(r"\b([A-Za-z_]\w*)\((\w+=[^()]*)?\)")
PHRASES = {  # what a stage is for that has no counterpart in a configuration
    r"\bfetch\(\)": "make fetch-weights",
    r"\bfetch\('?([\w.…]+)'?\)": r"make fetch-weights backbone=\1",
    r"\bsync\(\)": "make sync",
}
AT_MOST = 3  # keys that one argument may stand for; of more, none is more helpful than the class's name


class Wording:
    """The words for one configuration."""

    def __init__(self, config: DictConfig) -> None:
        self._config = config

    def reword(self, text: str) -> str:
        """Return a message of the library in the words of the command line."""
        for pattern, phrase in PHRASES.items():
            text = re.sub(pattern, phrase, text)
        return ARGUMENT.sub(self._key, CALL.sub(_choice, text))

    @functools.cached_property
    def _nodes(self) -> list[tuple[str, str, DictConfig]]:
        return list(_targets(self._config, ""))

    def _key(self, match: re.Match[str]) -> str:
        """Return the keys for ``Class.argument``, with the value that it may be given."""
        name, argument, rest, value = (part or "" for part in match.groups())
        keys = _keys(self._nodes, name, argument)
        if not keys and name[0].isupper():  # of another choice than the one that was taken
            keys = _keys(_options_targets(), name, argument)
        if not 1 <= len(keys) <= AT_MOST:
            return match[0]
        given = f"={_literal(ast.literal_eval(value))}" if value else ""
        return " or ".join(f"{key}{rest}{given}" for key in keys)


@contextmanager
def worded(config: DictConfig) -> Iterator[None]:
    """Put what is logged, and a mistake that is raised, during the block into the words of a configuration.

    Raises:
        UserError: the one that was raised, also from behind an error that Hydra or Lightning made of it.
    """
    wording = Wording(config)
    logger = logging.getLogger("graftline")
    handlers = list(logger.handlers)
    show_log(wording.reword)
    try:
        yield
    except Exception as error:
        if (mistake := find(error, UserError)) is None:
            raise
        raise UserError(wording.reword(str(mistake))) from error
    finally:
        logger.handlers = handlers


def _targets(node: Any, key: str) -> Iterator[tuple[str, str, DictConfig]]:
    """Yield the name of each class or function in a configuration, base classes included, with its key and node."""
    if isinstance(node, DictConfig) and "_target_" in node:
        target = get_object(node["_target_"])
        for name in [kind.__name__ for kind in target.__mro__] if inspect.isclass(target) else [target.__name__]:
            yield name, key, node
    children = node.items_ex(resolve=False) if isinstance(node, DictConfig) else enumerate(node)
    for name, child in children:
        if isinstance(child, DictConfig | ListConfig) and not child._is_missing() and not child._is_none():
            # one list of backbones is made of what is chosen for the group
            own = GROUP if name == LIST else key if key == GROUP and isinstance(name, int) else f"{key}.{name}"
            yield from _targets(child, own.lstrip("."))


def _keys(nodes: list[tuple[str, str, DictConfig]], name: str, argument: str) -> list[str]:
    """Return the dotted keys of an argument of the class or function ``name``."""
    found = [
        f"{key}.{argument}".lstrip(".")
        for own, key, node in nodes
        if own == name and (argument in parameters(node) or has_key(node, argument))
    ]
    return list(dict.fromkeys(found))


def _choice(match: re.Match[str]) -> str:
    """Return the only choice of a group that makes ``Class(argument=value)``."""
    name, arguments = match[1], match[2]
    given = dict(argument.split("=", 1) for argument in re.split(r",\s*", arguments)) if arguments else {}
    choices = [
        f"{file.parent.name}={file.stem}"
        for file, option in _options()
        for node in (option, option.get("source"))
        if isinstance(node, DictConfig)
        and str(node.get("_target_")).rpartition(".")[2] == name
        and all(key in node and str(node[key]) == value.strip("'") for key, value in given.items())
    ]
    return choices[0] if len(choices) == 1 else match[0]


@functools.cache
def _options() -> list[tuple[Path, DictConfig]]:
    """Return the files of conf/ that a group's choices are, as they are written."""
    files = [file for file in sorted(CONF.glob("*/*.yaml")) if file.stem != "base" and file.parent.name != "hydra"]
    loaded = [(file, OmegaConf.load(file)) for file in files]
    return [(file, option) for file, option in loaded if isinstance(option, DictConfig)]


@functools.cache
def _options_targets() -> list[tuple[str, str, DictConfig]]:
    return [target for file, option in _options() for target in _targets(option, file.parent.name)]


def _literal(value: str | bool | None) -> str:
    """Write a value as it is typed on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value
