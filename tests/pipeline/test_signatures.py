"""What the source of a class tells of its parameters is what an import tells."""

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from graftline.pipeline.cli.hydra_conf import CONF
from graftline.pipeline.cli.parameters import imported_signature, parameters
from graftline.pipeline.cli.signatures import UnreadableError, read_signature


def targets(node: Any) -> Iterator[str]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and "_target_" in node:
        yield node["_target_"]
    for child in children:
        yield from targets(child)


TARGETS = sorted({target for file in CONF.rglob("*.yaml") for target in targets(yaml.safe_load(file.read_text()))})


def shape(hint: Any) -> Any:
    """Return what can be compared of a type: names in the place of classes, unions without order."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, list):
        return [shape(one) for one in hint]
    if origin in (typing.Union, types.UnionType, typing.Literal):
        return frozenset(map(shape, arguments))
    if origin is not None:
        return origin, *map(shape, arguments)
    return getattr(hint, "__name__", hint)


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_of_the_configuration(target: str) -> None:
    read, imported = read_signature(target), imported_signature(target)
    assert list(read) == list(imported)
    for name, hint in imported.items():
        if hint is not Any:  # albumentations hides its types from an import
            assert shape(read[name]) == shape(hint), name


MODULE = """
from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Optional, TypeVar

import json as j
from . import deep
from .deep import *

if TYPE_CHECKING:
    from .deep.below import Hidden as Shown

T = TypeVar("T")
Sizes = tuple[int, ...] | None

class Colour(Enum):
    RED = "red"

class Box(Generic[T]):
    pass

@dataclass
class Base:
    number: int
    KINDS: ClassVar[int] = 3

@dataclass
class Made(Base):
    shown: Shown | None = None
    box: "Box[int]" = field(default_factory=Box)
    sizes: Sizes = None
    kind: Literal["a", -1] = "a"
    colour: Colour = Colour.RED
    other: Optional["deep.below.Hidden"] = None
    encoder: j.JSONEncoder | None = None
    computed: int = field(init=False, default=0)

class Plain(Made):
    def method(self, x: int) -> None: ...

class Own(Made):
    def __init__(self, /, first: unknown, *rest: str, only: bool = True, **more: float) -> None: ...

async def function(a: int, b=1) -> None: ...
"""
BELOW = "import nothing_of_that_name\nclass Hidden: pass\nclass Starred:\n    def __init__(self, x: float): ...\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package = tmp_path / tmp_path.name.replace("-", "_")
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text(MODULE)
    (package / "deep" / "__init__.py").write_text("from .below import *\n")
    (package / "deep" / "below.py").write_text(BELOW)
    monkeypatch.syspath_prepend(tmp_path)
    return package.name


def test_what_else_may_stand_in_a_module(module: str) -> None:
    made = read_signature(f"{module}.Made")
    names = {name: shape(hint) for name, hint in made.items()}
    assert names == {
        "number": "int",
        "shown": frozenset({"Hidden", "NoneType"}),
        "box": "Box",
        "sizes": frozenset({(tuple, "int", Ellipsis), "NoneType"}),
        "kind": frozenset({"a", -1}),
        "colour": "Any",  # text may be given for it
        "other": frozenset({"Hidden", "NoneType"}),
        "encoder": frozenset({"JSONEncoder", "NoneType"}),
    }
    assert read_signature(f"{module}.Plain") == made
    assert read_signature(f"{module}.Own") == {"first": Any, "rest": str, "only": bool, "more": float}
    assert read_signature(f"{module}.function") == {"a": int, "b": Any}
    assert read_signature(f"{module}.Starred") == {"x": float}


@pytest.mark.parametrize("path", ["zlib.compress", "json.encoder.JSONEncoder.default", "no_such.Thing", "json.nothing"])
def test_what_no_source_tells_is_said(path: str) -> None:
    with pytest.raises(UnreadableError):
        read_signature(path)


def test_what_no_source_tells_is_imported() -> None:
    from omegaconf import OmegaConf

    assert list(parameters(OmegaConf.create({"_target_": "zlib.compress"}))) == ["data", "level", "wbits"]
