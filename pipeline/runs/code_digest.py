"""A digest of graftline's own source files: of a clone that was changed too, which has no version for it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import graftline


def code_digest(names: Iterable[str]) -> str:
    """Return the SHA-256 of source files, in hex.

    Args:
        names: of packages and files, such as "bundle" and "pipeline/train.py".
    """
    root = Path(graftline.__file__).parent
    files = [file for name in names for file in (sorted((root / name).rglob("*.py")) or [root / name])]
    total = hashlib.sha256()
    for file in files:
        total.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()
