"""The files of conf/ as text: which folders there are, their stages, groups, options and keys, and what these say.

The first comment of a file is ``# make STAGE key=value        what it does``, with eight blanks between; further
lines of this form are more examples. Help and completion come from here, and need neither Hydra nor torch.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from graftline.errors import UserError
from graftline.pipeline.program import program

CONF = Path(__file__).resolve().parents[2] / "conf"
EXAMPLE = re.compile(r"# make (\S.*?)(?: {8}(.*))?$")
KEY = re.compile(r"( *)([\w-]+):(?: |$)(?:.*? # *(.*))?")
HIDDEN = ("base", "hydra")  # what others build on, and Hydra's own


class Example(NamedTuple):
    """A command of a file's first comments, as it is called here, and what it does."""

    command: str
    text: str


class Key(NamedTuple):
    """A key of a file, with its default and its comment."""

    name: str
    default: str
    comment: str


def directories(config_dir: Path | None = None) -> list[Path]:
    """Return the folders of configuration: our own, the one that was named, and ./conf where that is the user's.

    Raises:
        UserError: the one that was named is no folder.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir={config_dir}: there is no such folder.")
    here = Path.cwd() / "conf"
    folders = [CONF, *([config_dir.absolute()] if config_dir else []), *([here] if here.is_dir() else [])]
    return [folder for number, folder in enumerate(folders) if not any(map(folder.samefile, folders[:number]))]


def stages(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the stages, name to file: what lies at the root of a folder and has a ``_target_``."""
    files = [file for folder in folders for file in sorted(folder.glob("*.yaml"))]
    found = {file.stem: file for file in reversed(files) if re.search("^_target_:", file.read_text("utf-8"), re.M)}
    return dict(sorted(found.items()))


def find_stage(folders: Sequence[Path], name: str) -> Path:
    """Return the file of a stage.

    Raises:
        UserError: there is no such stage.
    """
    known = stages(folders)
    if name not in known:
        raise UserError(f"{name or 'nothing'} is not a stage: take one of {', '.join(known)}.")
    return known[name]


def options(folders: Sequence[Path], group: str) -> dict[str, Path]:
    """Return the options of a group, name to file; of two of one name, the first folder's."""
    files = [file for folder in folders for file in sorted((folder / group).glob("*.yaml"))]
    return {file.stem: file for file in reversed(files)}


def shadowed(folders: Sequence[Path]) -> list[Path]:
    """Return the files of a user that are not read, since an earlier folder has another one of that name."""
    relative = [(folder, file.relative_to(folder)) for folder in folders for file in sorted(folder.glob("**/*.yaml"))]
    first: dict[Path, Path] = {}
    files = [(folder / name, first.setdefault(name, folder / name)) for folder, name in relative]
    return [file for file, earlier in files if file.read_bytes() != earlier.read_bytes()]


def groups(file: Path) -> dict[str, str | None]:
    """Return the groups of a stage and the option that each has by default, with those of a stage that it builds on."""
    chosen: dict[str, str | None] = {}
    for entry in _load(file).get("defaults", []):
        if isinstance(entry, dict):
            chosen |= entry
        elif entry != "_self_":
            chosen |= groups(file.with_name(f"{entry}.yaml"))
    return {group: option for group, option in chosen.items() if group not in HIDDEN}


def examples(file: Path) -> list[Example]:
    """Return the commands in the first comments of a file."""
    lines = file.read_text("utf-8").splitlines()
    matches = (EXAMPLE.match(line) for line in lines if line.startswith("#"))
    return [Example(f"{program()} {match[1]}", _as_called(match[2] or "")) for match in matches if match]


def keys(file: Path) -> list[Key]:
    """Return the keys of a file, dotted where they are in a node, without those of Hydra.

    Those of a file that it builds on come after its own.
    """
    comments, path = {}, list[tuple[int, str]]()
    for match in filter(None, map(KEY.match, file.read_text("utf-8").splitlines())):
        path = [(indent, name) for indent, name in path if indent < len(match[1])] + [(len(match[1]), match[2])]
        comments[".".join(name for _, name in path)] = match[3] or ""
    content = _load(file)
    own = {name: Key(name, value, _as_called(comments.get(name, ""))) for name, value in _leaves(content)}
    built_on = [one for one in content.get("defaults", []) if isinstance(one, str) and one != "_self_"]
    below = [key for one in built_on for key in keys(file.with_name(f"{one}.yaml")) if key.name not in own]
    return [*own.values(), *below]


def _as_called(text: str) -> str:
    """Return a comment with its commands as they are called here."""
    return re.sub(rf"\bmake (?={'|'.join(stages([CONF]))})", f"{program()} ", text)


def _load(file: Path) -> dict[str, Any]:
    content = yaml.safe_load(file.read_text("utf-8"))
    return content if isinstance(content, dict) else {}


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in node.items():
        if str(name).startswith("_") or (name == "defaults" and not prefix):
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _in_words(value)


def _in_words(value: Any) -> str:
    """Return a default as it would be typed."""
    if value == "???":
        return "(needed)"
    if isinstance(value, list):
        return f"[{', '.join(map(_in_words, value[:2]))}{', …' if len(value) > 2 else ''}]"
    return str(yaml.safe_dump(value, allow_unicode=True)).splitlines()[0]
