"""Wording: what the library says about its arguments, in the words of the command line.

The library names an argument by its class (``Features.max_gb``), and a choice by what it is made with (``Nothing()``).
On the command line these are the key ``features.max_gb`` and the choice ``freeze=none``. Both are read off the
configuration, whose nodes name their classes as ``_target_``; what is found in none of them stays as it is.
"""

import functools
import inspect
import logging
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from graftline.console import show_log
from graftline.errors import UserError, find_cause
from graftline.pipeline.cli.gather import GROUP, LIST
from graftline.pipeline.cli.hydra_conf import CONF
from graftline.pipeline.cli.parameters import takes
from graftline.pipeline.program import program
from graftline.pipeline.runs.directory import TRACKED_AT, overrides_of

ARGUMENT = re.compile(r"(?<![\w./\\-])([A-Za-z_]\w*)\.(\w+)((?:\.\w+)*)(?:=('[^']*'|(?:True|False|None)\b))?")
CALL = re.compile(r"\b([A-Za-z_]\w*)\((\w+=[^()]*)?\)")
ARGUMENTS = re.compile(r"\bthe arguments of ([A-Za-z_]\w*)")
PHRASES = {  # functions that a stage of their own calls; make is the program that was called
    r"\bfetch\(\)": "make fetch-weights",
    r"\bfetch\('?([\w.…]+)'?\)": r"make fetch-weights backbone=\1",
    r"(\b[Rr]un ([0-9a-f]{32})\b[^!]*)\bsync\(\)": r"\1make sync run_id=\2",
    r"\bsync\(\)": "make sync",
}
LITERALS = {"True": "true", "False": "false", "None": "null"}
STANDS_FOR = {"Retrain": "Train"}  # takes the arguments of another stage and builds it late, as that loads torch
AT_MOST = 3  # keys that one argument may stand for; of more, none is more helpful than the class's name


class Target(NamedTuple):
    """A node that is built from a class or function, the dotted key of the node, and one of the names of the class."""

    name: str
    key: str
    node: DictConfig


def reword(config: DictConfig, text: str, overrides: Sequence[str] = ()) -> str:
    """Return a message of the library in the words of the command line.

    Args:
        config: of the stage that says it.
        text: the message.
        overrides: of that stage; a command that looks for a run has those that say where runs are tracked.
    """
    if "sync()" in text:
        text = text.replace("sync()", " ".join(["sync()", *map(shlex.quote, overrides_of(overrides, TRACKED_AT))]))
    for pattern, phrase in PHRASES.items():
        text = re.sub(pattern, phrase.replace("make", program()), text)
    text = ARGUMENTS.sub(functools.partial(_node, config), CALL.sub(_choice, text))
    return ARGUMENT.sub(functools.partial(_key, config), text)


@contextmanager
def worded(config: DictConfig, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Put what is logged, and a mistake that is raised, during the block into the words of a configuration.

    Args:
        config: the configuration.
        overrides: that led to it.

    Raises:
        UserError: the one that was raised, also from behind an error that Hydra or Lightning made of it.
    """
    logger = logging.getLogger("graftline")
    before = (logger.handlers, logger.level, logger.propagate)
    show_log(functools.partial(reword, config, overrides=overrides))
    try:
        yield
    except Exception as error:
        if (mistake := find_cause(error, UserError)) is None:
            raise
        raise UserError(reword(config, str(mistake), overrides)) from error
    finally:
        logger.handlers, logger.level, logger.propagate = before


def _key(config: DictConfig, match: re.Match[str]) -> str:
    """Return the key for ``Class.argument``, or the keys; also of a choice that was not taken."""
    groups: tuple[str | None, ...] = match.groups()
    name, argument, rest, value = (part or "" for part in groups)
    if name[0].islower() and name not in _target_names(config):  # a file's name; to look closer imports all targets
        return match[0]
    places: list[Callable[[], Iterable[Target]]] = [functools.partial(_targets, config)]
    if name[0].isupper():
        places.append(_choices)  # after the first, as it imports all that can be chosen, which takes seconds
    for targets in places:
        found = [target for target in targets() if target.name == name and takes(target.node, argument)]
        if keys := dict.fromkeys(f"{target.key}.{argument}{rest}".lstrip(".") for target in found):
            given = f"={LITERALS.get(value, value.strip(chr(39)))}" if value else ""
            return " or ".join(f"{key}{given}" for key in keys) if len(keys) <= AT_MOST else match[0]
    return match[0]


def _node(config: DictConfig, match: re.Match[str]) -> str:
    """Return the key below which the arguments of a class are, if there is one only."""
    keys = {target.key for target in _targets(config) if target.name == match[1]}
    return f"what is below {keys.pop()}" if len(keys) == 1 else match[0]


def _choice(match: re.Match[str]) -> str:
    """Return the choice of a group that makes ``Class(argument=value)``, if it is the only one."""
    name, arguments = match[1], match[2]
    given = dict(re.findall(r"(\w+)=([^,]*)", arguments or ""))
    made = [
        choice
        for choice, option in _options().items()
        for node in (option, option.get("source"))
        if isinstance(node, DictConfig) and str(node.get("_target_")).rpartition(".")[2] == name
        if all(key in node and str(node[key]) == value.strip("'") for key, value in given.items())
    ]
    return made[0] if len(made) == 1 else match[0]


def _target_names(node: Any) -> Iterator[str]:
    """Yield the last part of each ``_target_`` of a configuration."""
    for name, child in node.items_ex(resolve=False) if isinstance(node, DictConfig) else enumerate(node):
        if name == "_target_":
            yield str(child).rpartition(".")[2]
        elif isinstance(child, DictConfig | ListConfig) and not child._is_missing() and not child._is_none():
            yield from _target_names(child)


def _targets(node: Any, key: str = "") -> Iterator[Target]:
    """Yield what a configuration is built from, each class under its own name and those of its base classes."""
    if isinstance(node, DictConfig) and "_target_" in node:
        target = get_object(node["_target_"])
        names = [one.__name__ for one in target.__mro__] if inspect.isclass(target) else [target.__name__]
        for one in [*names, *(STANDS_FOR[name] for name in names if name in STANDS_FOR)]:
            yield Target(one, key, node)
    for name, child in node.items_ex(resolve=False) if isinstance(node, DictConfig) else enumerate(node):
        if isinstance(child, DictConfig | ListConfig) and not child._is_missing() and not child._is_none():
            # the list of backbones is made of what is chosen for the group
            path = GROUP if name == LIST or (key == GROUP and isinstance(name, int)) else f"{key}.{name!s}".lstrip(".")
            yield from _targets(child, path)


@functools.cache
def _options() -> dict[str, DictConfig]:
    """Return the files of conf/ by the choice that each of them is, as they are written."""
    files = [file for file in sorted(CONF.glob("*/*.yaml")) if file.stem != "base" and file.parent.name != "hydra"]
    loaded = {f"{file.parent.name}={file.stem}": OmegaConf.load(file) for file in files}
    return {choice: option for choice, option in loaded.items() if isinstance(option, DictConfig)}


@functools.cache
def _choices() -> list[Target]:
    return [target for choice, option in _options().items() for target in _targets(option, choice.partition("=")[0])]
