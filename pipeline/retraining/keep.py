"""What is kept of old runs, and what is removed: by age and number, and never what a model in use needs.

Five kinds of things grow with retrainings: output directories, the checkpoints in those of trainings that have come to
their end, cached activations, registered versions that the gate has refused, and dataset versions, which have a file
of their own. None is part of a model in use.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

from graftline.console import warn
from graftline.errors import UserError, first_line
from graftline.features.segment import Segment
from graftline.features.store import SECONDS_PER_DAY, ActivationStore, format_bytes
from graftline.locks import Lock
from graftline.pipeline.runs.directory import RunDirectory
from graftline.tracking.models_in_use import UsedRun, is_elsewhere
from graftline.tracking.refused import RefusedVersion, find_refused, measure, remove
from graftline.tracking.tracking import Tracking

CONFIG, LOCK = ".hydra/config.yaml", ".hydra/lock"


@dataclass(frozen=True)
class Keep:
    """What is kept (Hydra target of the node ``keep``).

    Attributes:
        runs: number of output directories of each stage, of refused versions of each model, and of dataset versions of
            each data set, that are kept whatever their age, the newest.
        days: that output directories, cached activations, refused versions and dataset versions are kept, however many
            there are.
        checkpoint_days: that the checkpoints of trainings that have ended are kept.
        outputs: folder of the stages' output directories.
    """

    runs: int = 20
    days: float = 90.0
    checkpoint_days: float = 14.0
    outputs: str = "outputs"

    def __post_init__(self) -> None:
        for name in ("runs", "days", "checkpoint_days"):
            if not getattr(self, name) >= 0:  # also catches NaN
                raise UserError(f"Keep.{name} is {getattr(self, name)}, it must be at least 0.")


class Removable(Protocol):
    """Something to be removed."""

    @property
    def kind(self) -> str:
        """What things of its kind are called, for people."""
        ...

    @property
    def name(self) -> str:
        """What it is called, for people."""
        ...

    @property
    def path(self) -> Path | str:
        """Where it is, or the reference to it."""
        ...

    @property
    def bytes(self) -> int:
        """What it takes."""
        ...

    @property
    def days(self) -> float:
        """Since it was of use."""
        ...

    def remove(self, store: ActivationStore) -> bool:
        """Remove it; returns whether it is gone."""
        ...


@dataclass(frozen=True)
class Leftover:
    """Something to be removed.

    Attributes:
        kind: outputs, checkpoints or activations.
        path: of a folder.
        bytes: that it takes.
        days: since it was used.
        segment: of the activation cache, where it is one.
    """

    kind: str
    path: Path
    bytes: int
    days: float
    segment: Segment | None = None

    @property
    def name(self) -> str:
        """What it is called, for people."""
        return os.path.relpath(self.path)

    def remove(self, store: ActivationStore) -> bool:
        """Remove it; returns whether nobody uses it."""
        if self.segment is not None:
            return bool(store.remove([self.segment]))
        try:
            with _unused(self.path):
                shutil.rmtree(self.path, ignore_errors=True)
        except BlockingIOError:
            return False
        return not self.path.exists()


@dataclass(frozen=True)
class OldVersion:
    """A registered version to be removed.

    Attributes:
        version: that was refused.
        tracking: where it is registered.
        bytes: that its files take.
        days: since it was refused.
    """

    version: RefusedVersion
    tracking: Tracking
    bytes: int
    days: float
    kind: str = "refused versions"

    @property
    def path(self) -> str:
        """The reference to it."""
        return self.version.uri

    @property
    def name(self) -> str:
        """What it is called, for people."""
        return self.path

    def remove(self, store: ActivationStore) -> bool:  # noqa: ARG002 - that of a `Leftover`
        """Remove it; returns whether it is gone."""
        try:
            return remove(self.tracking, self.version)
        except UserError as error:
            warn(str(error))
            return False


def find_old_versions(keep: Keep, tracking: Tracking, model: str | None = None) -> list[OldVersion]:
    """Return the refused versions that are to be removed; those of a model whose ledger cannot be read stay.

    Args:
        keep: what is kept by age and number.
        tracking: where the models are registered.
        model: name of the registered model; None: all.

    Raises:
        UserError: MLflow does not answer.
    """
    found = []
    for name in tracking.registry().names():
        if model not in (None, name):
            continue
        try:
            for version in find_refused(tracking, name)[keep.runs :]:
                days = (time.time() - version.decided) / SECONDS_PER_DAY
                if days >= keep.days:
                    found.append(OldVersion(version, tracking, measure(tracking, version), days))
        except UserError as error:
            warn(f"Refused versions of {name} stay ({first_line(error)}).")
    return found


def find_leftovers(keep: Keep, uri: str, needed: Sequence[UsedRun], store: ActivationStore) -> list[Leftover]:
    """Return what is to be removed.

    Args:
        keep: what is kept by age and number.
        uri: of MLflow, which knows what is needed; the output directories of runs in another database or on another
            server are kept.
        needed: what is kept however old it is: the output directories of models in use. Activations that were used
            since the first of them was trained are theirs or newer, and stay too.
        store: of the activations.
    """
    now = time.time()
    outputs = list(_outputs(keep, uri, needed, now))
    gone = {one.path for one in outputs}
    checkpoints = [one for one in _checkpoints(keep, uri, needed, now) if gone.isdisjoint(one.path.parents)]
    return [*outputs, *checkpoints, *_activations(keep, needed, store, now)]


def remove_leftovers(leftovers: Sequence[Removable], store: ActivationStore) -> str:
    """Remove what is to be removed; returns in words what it was, empty if it was nothing."""
    removed = [one for one in leftovers if one.remove(store)]
    return summarize(removed) if removed else ""


def _outputs(keep: Keep, uri: str, needed: Sequence[UsedRun], now: float) -> Iterator[Leftover]:
    for stage in sorted(path for path in Path(keep.outputs).glob("*") if path.is_dir()):
        # their names are times
        directories = [path for path in sorted(stage.iterdir(), reverse=True) if _is_output(path)]
        for path in directories[keep.runs :]:
            days = (now - _used(path)) / SECONDS_PER_DAY
            if days >= keep.days and not _is_used(path) and not _holds_needed(path, uri, needed):
                yield Leftover("outputs", path, size(path), days)


def _checkpoints(keep: Keep, uri: str, needed: Sequence[UsedRun], now: float) -> Iterator[Leftover]:
    """Yield the checkpoints of trainings that have ended: the bundle has the best of them."""
    for path in sorted(Path(keep.outputs).glob("**/checkpoints")):
        files = RunDirectory(path.parent)
        if not files.result.exists() or not files.bundle.is_dir() or path.is_symlink():
            continue
        days = (now - _used(path.parent)) / SECONDS_PER_DAY
        if days >= keep.checkpoint_days and not _holds_needed(path.parent, uri, needed):
            yield Leftover("checkpoints", path, size(path), days)


def _activations(keep: Keep, needed: Sequence[UsedRun], store: ActivationStore, now: float) -> Iterator[Leftover]:
    if not store.directory.exists():
        return
    since = min((one.started for one in needed), default=now)
    for segment in store.unused(keep.days):
        if segment.used() < since:
            days = (now - segment.used()) / SECONDS_PER_DAY
            yield Leftover("activations", segment.directory, segment.bytes(), days, segment)


def _is_output(path: Path) -> bool:
    """Tell whether a folder is an output directory, or that of several runs: nothing else is ever removed."""
    if not path.is_dir() or path.is_symlink():
        return False
    return any(chain.from_iterable(path.glob(pattern) for pattern in (CONFIG, f"*/{CONFIG}")))


def _holds_needed(path: Path, uri: str, needed: Sequence[UsedRun]) -> bool:
    """Tell whether a folder is, holds or is held by one that is needed, or has values that this MLflow did not get."""
    whole = path.resolve()
    if any(one.directory.is_relative_to(whole) or whole.is_relative_to(one.directory) for one in needed):
        return True
    return any(_has_unsent(outbox) or is_elsewhere(outbox.parent, uri) for outbox in path.glob("**/outbox"))


def _has_unsent(outbox: Path) -> bool:
    with suppress(OSError, ValueError):
        journal, mark = outbox / "journal.jsonl", outbox / "sent"
        sent = int(mark.read_text(encoding="utf-8").split()[0]) if mark.exists() else 0
        return journal.exists() and journal.stat().st_size > sent
    return False


@contextmanager
def _unused(path: Path) -> Iterator[None]:
    """Keep runs from writing into an output directory during the block.

    Raises:
        BlockingIOError: one does.
    """
    with ExitStack() as locks:
        for file in path.glob(f"**/{LOCK}"):
            locks.enter_context(Lock(file, shared=False))
        yield


def _is_used(path: Path) -> bool:
    try:
        with _unused(path):
            return False
    except BlockingIOError:
        return True


def _used(path: Path) -> float:
    """Return when something was last written into an output directory, seconds since 1970."""
    try:
        return max(file.lstat().st_mtime for file in [path, *path.iterdir()])
    except FileNotFoundError:  # something was removed at this moment
        return time.time()


def size(path: Path) -> int:
    """Return the bytes of the files below a folder."""
    return sum(_bytes(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)


def _bytes(file: Path) -> int:
    """Return the bytes of a file, or of a link itself; 0 of one that is gone by now."""
    try:
        return file.lstat().st_size
    except FileNotFoundError:
        return 0


def summarize(leftovers: Sequence[Removable]) -> str:
    """Return in words how much it is.

    >>> summarize([])
    'nothing'
    """
    parts = []
    for kind in dict.fromkeys(one.kind for one in leftovers):
        some = [one for one in leftovers if one.kind == kind]
        parts.append(f"{len(some)} x {kind} ({format_bytes(sum(one.bytes for one in some))})")
    return ", ".join(parts) or "nothing"
