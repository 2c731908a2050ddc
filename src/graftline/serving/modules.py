"""Copy the few modules of graftline that a script imports, so that it runs where graftline is not installed."""

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import graftline

ROOT = Path(graftline.__file__).parent


def imported_modules(script: Path) -> tuple[Path, ...]:
    """Return the files of the modules that a script imports from graftline, directly and by way of each other.

    What a function imports when it is called is left out, since only the predictor's torch engine does that. So is what
    is imported for type checkers.

    Args:
        script: a Python file.

    Returns:
        Paths relative to graftline's own folder, sorted; the ``__init__.py`` of each package is among them.
    """
    found: set[Path] = set()
    unread = [script]
    while unread:
        names = _imports(ast.parse(unread.pop().read_text(encoding="utf-8")))
        new = {file for name in names for file in _files(name)} - found
        found |= new
        unread += [ROOT / file for file in new]
    return tuple(sorted(found))


def imported_packages(script: Path) -> tuple[str, ...]:
    """Return the names by which what `imported_modules` finds, and the script, import what others have written."""
    files = (script, *(ROOT / file for file in imported_modules(script)))
    names = {name.partition(".")[0] for file in files for name in _imports(ast.parse(file.read_text(encoding="utf-8")))}
    return tuple(sorted(names - sys.stdlib_module_names - {ROOT.name}))


def copy_imported_modules(script: Path, destination: Path) -> Path:
    """Copy what `imported_modules` finds into ``destination/graftline``, laid out as it is here, and return that."""
    package = destination / ROOT.name
    for file in imported_modules(script):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, package / file)
    return package


def _imports(node: ast.AST) -> Iterator[str]:
    """Yield the dotted names that are imported when a module is; of ``from a import b``, both a and a.b."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.module is not None, "graftline has no relative imports"
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif not (isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or _is_for_type_checkers(child)):
            yield from _imports(child)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _files(name: str) -> Iterator[Path]:
    """Yield the files of a module of graftline and of the packages around it; none for any other name."""
    words = name.split(".")
    if words[0] != ROOT.name:
        return
    for length in range(1, len(words) + 1):
        path = Path(*words[1:length])
        for file in (path / "__init__.py", path.with_suffix(".py") if length > 1 else None):
            if file is not None and (ROOT / file).is_file():
                yield file
