"""Keep weights in a directory that travels to machines without network, with a lock file that says what they are.

weights/
  resnet50.a1_in1k.safetensors     one file per timm model, tag included
  weights.lock.json                name → hash, license and origin of each
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field, TypeAdapter, ValidationError
from timm.models import get_pretrained_cfg

from graftline.errors import UserError
from graftline.files import sha256_file, write_json
from graftline.locks import Lock

LOCK_NAME = "weights.lock.json"
PREFIX = 12  # hex digits of a hash that a message shows


@dataclass(frozen=True)
class LockedWeights:
    """One file's entry in the lock file.

    Attributes:
        file: name of the file, in the directory of the lock file.
        sha256: of the file, in hex.
        bytes: size of the file.
        license: of the weights, as timm has it; ``unknown`` if it has none.
        source: REPOSITORY@COMMIT/FILE, a URL, or a Python package with its version.
        architecture: timm's name of the network, without the tag.
        date: ISO day on which they were fetched.
        timm: version of timm that they were fetched, and loaded, with.
    """

    file: str
    sha256: str
    bytes: int
    license: Annotated[str, Field(validation_alias=AliasChoices("license", "licence"))]  # "licence" until 0.1
    source: str
    architecture: str
    date: str
    timm: str


class LockMismatchError(UserError):
    """The directory and its lock file disagree about one network's weights: they have to be fetched again."""


@dataclass(frozen=True)
class WeightsStore:
    """A weights directory, which need not exist yet.

    Attributes:
        dir: its path; ``~`` is the user's home.
    """

    dir: str

    @property
    def directory(self) -> Path:
        """Its path, without ``~``."""
        return Path(self.dir).expanduser()

    @property
    def lock_file(self) -> Path:
        """Path of the lock file."""
        return self.directory / LOCK_NAME

    def make(self) -> None:
        """Make the directory unless it exists.

        Raises:
            UserError: it cannot be made, or not be written to.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            writable = os.access(self.directory, os.W_OK)
        except OSError as error:
            reason = "is a file" if self.directory.is_file() else f"cannot be made ({error.strerror})"
            raise UserError(f"WeightsStore.dir={self.dir} {reason}: give another directory.") from error
        if not writable:
            raise UserError(
                f"WeightsStore.dir={self.dir} cannot be written to: give another directory, or change its rights."
            )

    def entries(self) -> dict[str, LockedWeights]:
        """Read the lock file; empty if there is none.

        Raises:
            UserError: it is not what ``add`` writes.
        """
        if not self.lock_file.is_file():
            return {}
        try:
            return TypeAdapter(dict[str, LockedWeights]).validate_json(self.lock_file.read_bytes())
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise UserError(
                f"{self.lock_file} is no lock file of weights ({where + ': ' if where else ''}{problem['msg']}): "
                "put it back from a copy, or remove it and fetch the weights again with fetch()."
            ) from error

    def find(self, name: str) -> LockedWeights | None:
        """Return the entry of a network whose file is there and has the hash of the lock file.

        Args:
            name: a timm model's name; without a tag, its default one is meant.

        Returns:
            None if the directory has nothing for it.

        Raises:
            LockMismatchError: the file differs from the lock file, or one of them lacks what the other has.
            UserError: the lock file cannot be read.
        """
        name = full_name(name)
        entry, path = self.entries().get(name), self.path(name)
        if entry is None and not path.exists():
            return None
        fetch_again = f"fetch it again with fetch('{name}')"
        if entry is None:
            raise LockMismatchError(
                f"{path} is not listed in {LOCK_NAME}, so that nobody knows what it holds: {fetch_again}, "
                f"or, if you trust it, say so with Backbone.file={path}."
            )
        if not path.is_file():
            raise LockMismatchError(
                f"{self.lock_file} lists '{name}', but {path} is missing: {fetch_again}, or copy it there."
            )
        if (actual := sha256_file(path)) != entry.sha256:
            raise LockMismatchError(
                f"{path} is not the file that was fetched for '{name}' (its SHA-256 starts with {actual[:PREFIX]}, "
                f"that in {LOCK_NAME} with {entry.sha256[:PREFIX]}): {fetch_again}."
            )
        return entry

    def path(self, name: str) -> Path:
        """Return the path of a network's weights, which need not be there."""
        return self.directory / f"{full_name(name)}.safetensors"

    def add(self, name: str, written: Path, origin: Mapping[str, str]) -> LockedWeights:
        """Move a file into the directory and list it in the lock file. Several processes may do so at once.

        Args:
            name: a timm model's name.
            written: the file, on the directory's file system; it is moved.
            origin: the entry's other fields: license, source, architecture, date, timm.
        """
        name = full_name(name)
        path = self.path(name)
        entry = LockedWeights(path.name, sha256_file(written), written.stat().st_size, **origin)
        written.chmod(0o644)  # safetensors makes it private; what travels follows the usual rights
        with Lock(self.directory / f".{LOCK_NAME}.lock", shared=False, on_wait=lambda: None):
            entries = {**self.entries(), name: entry}
            written.replace(path)
            write_json(self.lock_file, {key: asdict(entries[key]) for key in sorted(entries)})
        return entry


def full_name(name: str) -> str:
    """Return a timm model's name with its tag, by which weights are kept.

    >>> full_name("resnet50"), full_name("resnet50.tv_in1k"), full_name("test_resnet")
    ('resnet50.a1_in1k', 'resnet50.tv_in1k', 'test_resnet.r160_in1k')
    """
    config = get_pretrained_cfg(name)
    return f"{config.architecture}.{config.tag}" if config is not None and config.tag else name
