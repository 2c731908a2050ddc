"""What the targets of a configuration take: their parameters, and the types of these."""

import functools
import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from graftline.pipeline.cli.signatures import UnreadableError, read_signature


def parameters(node: Any) -> dict[str, Any]:
    """Return the parameters, name to type, of what the node's ``_target_`` names; empty where it names nothing."""
    return dict(_signature(node["_target_"])) if isinstance(node, DictConfig) and "_target_" in node else {}


@functools.cache
def _signature(path: str) -> dict[str, Any]:
    try:
        return read_signature(path)
    except UnreadableError:
        return imported_signature(path)


def imported_signature(path: str) -> dict[str, Any]:
    """Return the parameters, name to type, of the class or function at a dotted path, which is imported."""
    target = get_object(path)
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # types that exist for a type checker only
        hints = {}
    return {name: hints.get(name, Any) for name in inspect.signature(target).parameters}


def takes(node: Any, name: str) -> bool:
    """Tell whether a node has a key, its target such a parameter, or a list such an index."""
    return has_key(node, name) or name in parameters(node)


def has_key(node: Any, name: str) -> bool:
    """Tell whether a node of a configuration has a key, or a list such an index."""
    if isinstance(node, DictConfig):
        return name in node or OmegaConf.is_missing(node, name)
    return name.isdigit() and OmegaConf.is_list(node) and int(name) < len(node)


def all_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a configuration, also those that its targets know and its files leave out."""
    for name in dict.fromkeys([*(str(name) for name in node), *parameters(node)]):
        if not name.startswith("_"):
            yield prefix + name
            child = None if OmegaConf.is_missing(node, name) else node.get(name)
            if isinstance(child, DictConfig):
                yield from all_keys(child, f"{prefix}{name}.")


def wanted_type(hint: Any, value: Any) -> str | None:
    """Return in words what ``hint`` wants if ``value`` is not of that type, else None."""
    if hint is None or (isinstance(value, str) and "${" in value):
        return None
    try:
        is_right = _is_same_kind(value, _adapter(hint).validate_python(value))
    except (ValidationError, SchemaError):  # SchemaError: a protocol, which no plain value fulfils
        is_right = isinstance(value, dict) and _takes_object(hint)  # it may be the node of a class
    return None if is_right else _in_words(hint)


def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True))
    except PydanticUserError:  # it has a configuration of its own: a dataclass or typed dict
        return TypeAdapter(hint)


def _takes_object(hint: Any) -> bool:
    """Tell whether a type has values beyond numbers, text, lists and mappings.

    >>> _takes_object(tuple[float, float] | None), _takes_object(slice | None)
    (False, True)
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(map(_takes_object, typing.get_args(hint)))
    is_collection = origin in (typing.Literal, Mapping, Sequence, list, tuple)
    return not is_collection and hint not in (bool, int, float, str, type(None))


def _is_same_kind(value: Any, validated: Any) -> bool:
    """Tell whether pydantic took the value for what it is: it would also take "no" for false and 16.0 for 16."""
    if isinstance(value, bool) or isinstance(validated, bool):
        return type(value) is type(validated)
    if isinstance(validated, float):
        return isinstance(value, int | float)
    return isinstance(value, int) if isinstance(validated, int) else True


def _in_words(hint: Any) -> str:
    """Return a type as it is written on the command line.

    >>> _in_words(Mapping[str, Mapping[str, float]]), _in_words(Sequence[str] | None)
    ('{name: {name: a number}}', '[text, …] or null')
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_in_words, arguments)))
    if origin is Mapping:
        return f"{{name: {_in_words(arguments[1])}}}"
    if origin in (Sequence, list):
        return f"[{_in_words(arguments[0])}, …]"
    if arguments:
        return str(hint).replace("typing.", "").replace("collections.abc.", "")
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
