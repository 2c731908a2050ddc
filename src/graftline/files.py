"""Files that are either whole or not there, and digests that name what they hold."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graftline.errors import UserError, no_room, writing


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place if the block ends well, else it is removed.

    Args:
        path: where the file is to appear; its folder is created.

    Yields:
        The path to write to, on the same file system and with the same suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        with writing(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: Path, argument: str) -> None:
    """Make sure that a path is a folder or can become one, and that files can be written there.

    Args:
        path: the folder.
        argument: what it was given as, as in ``Class.argument``.

    Raises:
        UserError: it, or what stands where a folder above it would, is no folder, or nothing can be written there.
    """
    if str(path) == "-":
        raise UserError(f"{argument} is -, but nothing is written to standard output: choose a folder.")
    nearest = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not nearest.is_dir():
        raise UserError(f"{argument} is {path}, but {nearest} is no folder: move it away, or choose another folder.")
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=nearest):  # the rights alone do not tell
            return
    except OSError as error:
        if no_room(error) is not None:
            raise
        raise UserError(
            f"{argument} is {path}, where nothing can be written ({error.strerror}): allow it, or choose another."
        ) from error


def check_replaceable(path: Path, argument: str, *, is_folder: bool) -> None:
    """Make sure that what is written to a path can take the place of what is there.

    Args:
        path: the file or folder.
        argument: what the folder above it was given as, as in ``Class.argument``.
        is_folder: whether a folder is written.

    Raises:
        UserError: a file would take the place of a folder, or a folder that of something else.
    """
    is_other = path.is_symlink() or not path.is_dir() if is_folder else path.is_dir()
    if os.path.lexists(path) and is_other:
        kind, is_there = ("folder", "is none") if is_folder else ("file", "is a folder")
        raise UserError(f"A {kind} is to be written to {path}, which {is_there}: move it away, or change {argument}.")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place if the block ends well, else it is removed.

    An existing ``path`` is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o755)  # mkdtemp makes it private; what we publish follows the usual rights
    try:
        with writing(path):
            yield temporary
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cache_directory() -> Path:
    """Return the user's folder of what can be made or downloaded again, beside those of torch and the hub's client."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "graftline"


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write text in UTF-8, atomically.

    Args:
        path: the file.
        text: its content.
        private: keep other users from reading it, as text with a database's URI, which can hold a password.
    """
    with atomic_file(path) as temporary:
        if private:
            temporary.touch(mode=0o600)
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, sort_keys=False, default=str) + "\n")


def digest(content: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of ``content`` as canonical JSON.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_directory(path: Path) -> str:
    """Return the `digest` of the names and contents of all files below ``path``."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest({file.relative_to(path).as_posix(): sha256_file(file) for file in files})
