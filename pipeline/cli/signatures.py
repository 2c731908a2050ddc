"""Signatures: what a class or function takes, as its source tells; importing torch and Lightning takes seconds."""

import ast
import builtins
import functools
import importlib
import importlib.util
import sys
from abc import ABC
from collections.abc import Iterator
from functools import cached_property
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, Union, cast

PLAIN: tuple[Any, ...] = (object, ABC, Protocol, Generic)  # bases that let a class take no number or text in its place
Function = ast.FunctionDef | ast.AsyncFunctionDef


class UnreadableError(LookupError):
    """The source does not tell; an import does."""


def read_signature(path: str) -> dict[str, Any]:
    """Return the parameters, name to type, of the class or function at a dotted path, without importing its module.

    A class in a type is a stand-in of the same name. A type that the source does not tell is Any.

    Raises:
        UnreadableError: there is no source, or it is written in a way that only an import understands.
    """
    module, _, name = path.rpartition(".")
    try:
        source = _find(module)
        statement = source.definition(name)
        while isinstance(statement, ast.ImportFrom):
            source, name = _origin(source, statement, name)
            statement = source.definition(name)
        if isinstance(statement, ast.ClassDef):
            return _parameters(source.value(name))
        if isinstance(statement, Function):
            return _arguments(source, statement)
    except (OSError, SyntaxError, RecursionError) as error:
        raise UnreadableError(path) from error
    raise UnreadableError(path)


class _Source:
    """A module as it is written.

    Args:
        name: dotted.
        file: its file.
        folders: where its own modules lie; none if it is no package.
    """

    def __init__(self, name: str, file: Path, folders: list[str]) -> None:
        self.name, self.folders = name, folders
        self.text = file.read_text(encoding="utf-8")

    @cached_property
    def statements(self) -> list[ast.stmt]:
        """What stands at the top level, also below a condition."""
        return list(_flat(ast.parse(self.text).body))

    @cached_property
    def stars(self) -> list[str]:
        """Modules of which all names are imported."""
        imports = (one for one in self.statements if isinstance(one, ast.ImportFrom))
        return [_absolute(self, one) for one in imports if one.names[0].name == "*"]

    def definition(self, name: str) -> ast.stmt:
        """Return the statement that gives a name its meaning here: of several the last one.

        Raises:
            UnreadableError: there is none.
        """
        if name in self.text:  # parsing takes longer
            for statement in reversed(self.statements):
                if name in _names(statement):
                    return statement
        for star in reversed(self.stars) if "import *" in self.text else ():
            try:
                _find(star).value(name)
            except UnreadableError:
                continue
            return ast.ImportFrom(star, [ast.alias(name)], 0)
        raise UnreadableError(f"{self.name}.{name}")

    @functools.cache  # noqa: B019 - modules stay, as those that are imported do
    def value(self, name: str) -> Any:
        """Return what a name means here: a type, a module or a constant.

        Raises:
            UnreadableError: the source does not tell.
        """
        try:
            statement = self.definition(name)
        except UnreadableError:
            if self.folders:  # a module of this package
                return _module(f"{self.name}.{name}")
            if hasattr(builtins, name):
                return getattr(builtins, name)
            raise
        match statement:
            case ast.ClassDef():
                return _stand_in(self, statement)
            case ast.Import(names=aliases):
                alias = next(one for one in aliases if name in (one.asname, one.name.partition(".")[0]))
                return _module(alias.name if alias.asname else name)
            case ast.ImportFrom():
                return _imported(self, statement, name)
            case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
                return _evaluate(self, value)
        raise UnreadableError(f"{self.name}.{name}")


@functools.cache
def _find(name: str) -> _Source:
    package, _, _ = name.rpartition(".")
    spec = PathFinder.find_spec(name, _find(package).folders) if package else importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UnreadableError(name)
    return _Source(name, Path(spec.origin), list(spec.submodule_search_locations or ()))


def _module(name: str) -> Any:
    """Return a module: itself if it is Python's own, else its source."""
    is_pythons = name.partition(".")[0] in sys.stdlib_module_names or name == "typing_extensions"
    return importlib.import_module(name) if is_pythons else _find(name)


def _flat(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, what is below a condition in their place; the first branch comes last, as it is the usual."""
    for statement in statements:
        match statement:
            case ast.If(body=body, orelse=alternative):
                yield from _flat([*alternative, *body])
            case ast.Try(body=body) | ast.With(body=body):
                yield from _flat(body)
            case _:
                yield statement


def _names(statement: ast.stmt) -> list[str]:
    """Return the names that a statement gives a meaning."""
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.Import(names=aliases):
            return [alias.asname or alias.name.partition(".")[0] for alias in aliases]
        case ast.ImportFrom(names=aliases):
            return [alias.asname or alias.name for alias in aliases]
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            return [name]
    return []


def _absolute(source: _Source, statement: ast.ImportFrom) -> str:
    """Return the module that a statement imports from."""
    package = source.name if source.folders else source.name.rpartition(".")[0]
    return importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)


def _origin(source: _Source, statement: ast.ImportFrom, name: str) -> tuple[_Source, str]:
    """Return the module that a name is imported from, and its name there."""
    alias = next(alias for alias in statement.names if name in (alias.asname, alias.name))
    return _find(_absolute(source, statement)), alias.name


def _imported(source: _Source, statement: ast.ImportFrom, name: str) -> Any:
    alias = next(alias for alias in statement.names if name == (alias.asname or alias.name))
    module = _module(path := _absolute(source, statement))
    if not isinstance(module, _Source):
        return getattr(module, alias.name)
    return _module(f"{path}.{alias.name}") if module is source else module.value(alias.name)


def _stand_in(source: _Source, node: ast.ClassDef) -> type:
    """Return a type of the same name, for a class that no plain value is an instance of.

    Raises:
        UnreadableError: a plain value may be, as with an Enum.
    """
    bases = []
    for base in node.bases:
        try:
            bases.append(_evaluate(source, base))
        except UnreadableError:  # of a C extension, or made by a function
            continue
    if any(getattr(base, "__name__", "") == "TypedDict" for base in bases):
        typed_dict = cast("type", bases[0](node.name, _fields(source, node)))
        typed_dict.__module__ = source.name
        return typed_dict
    stand_ins = [base for base in bases if hasattr(base, "_node")]
    others = [getattr(base, "__origin__", base) for base in bases if base not in stand_ins]
    if any(base not in PLAIN for base in others):
        raise UnreadableError(f"{source.name}.{node.name}")
    inside = {"__module__": source.name, "_source": source, "_node": node, "_bases": stand_ins}
    return type(node.name, (), inside)


def _evaluate(source: _Source, node: ast.expr) -> Any:
    """Return what a type means, as written in a module.

    Raises:
        UnreadableError: the source does not tell.
    """
    match node:
        case ast.Constant(value=str() as text):
            return _evaluate(source, ast.parse(text, mode="eval").body)
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return source.value(name)
        case ast.Attribute(value=inner, attr=name):
            owner = _evaluate(source, inner)
            return owner.value(name) if isinstance(owner, _Source) else getattr(owner, name)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_evaluate(source, left), _evaluate(source, right)]  # noqa: UP007 - both are values
        case ast.List(elts=elements):
            return [_evaluate(source, element) for element in elements]
        case ast.Subscript(value=inner, slice=index):
            generic = _evaluate(source, inner)
            elements = index.elts if isinstance(index, ast.Tuple) else [index]
            if generic is Literal:
                return Literal[tuple(map(ast.literal_eval, elements))]
            if hasattr(generic, "_node"):  # a class of its own with a parameter
                return generic
            values = tuple(_evaluate(source, element) for element in elements)
            return generic[values if len(values) > 1 else values[0]]
    raise UnreadableError(ast.unparse(node))


def _type(source: _Source, node: ast.expr | None) -> Any:
    if node is None:
        return Any
    try:
        return _evaluate(source, node)
    except (UnreadableError, AttributeError, TypeError, ValueError, SyntaxError):
        return Any


def _parameters(stand_in: Any) -> dict[str, Any]:
    """Return the parameters of a class: of its ``__init__``, its fields, or what it inherits."""
    source, node = stand_in._source, stand_in._node
    for statement in node.body:
        if isinstance(statement, Function) and statement.name == "__init__":
            return dict(list(_arguments(source, statement).items())[1:])
    inherited = [_parameters(base) for base in reversed(stand_in._bases)]
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return inherited[-1] if inherited else {}
    fields = {name: hint for given in [*inherited, _fields(source, node)] for name, hint in given.items()}
    keywords = _keywords(stand_in)
    return {name: fields[name] for name in sorted(fields, key=keywords.__contains__)}  # those come last, as in Python


def _keywords(stand_in: Any) -> set[str]:
    """Return the fields of a dataclass, inherited ones among them, that are given by their names only."""
    own = {
        statement.target.id
        for statement in stand_in._node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if statement.value is not None and "kw_only=True" in ast.unparse(statement.value)
    }
    return own.union(*map(_keywords, stand_in._bases))


def _fields(source: _Source, node: ast.ClassDef) -> dict[str, Any]:
    """Return the fields of a dataclass or typed dict, without those that it inherits."""
    fields = {}
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                is_set_by_the_class = value is not None and "init=False" in ast.unparse(value)
                if not is_set_by_the_class and "ClassVar" not in ast.unparse(annotation):
                    fields[name] = _type(source, annotation)
    return fields


def _arguments(source: _Source, function: Function) -> dict[str, Any]:
    listed = function.args
    named = [*listed.posonlyargs, *listed.args, listed.vararg, *listed.kwonlyargs, listed.kwarg]
    return {one.arg: _type(source, one.annotation) for one in named if one is not None}
