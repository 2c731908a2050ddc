"""Which dataset versions are removed: by age and number, and never one that a model, a run or the next ingest needs."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from graftline.bundle.layout import CARD_FILE
from graftline.console import warn
from graftline.data.old_versions import age, find_old, is_test_set, knows_all_of, remove_version
from graftline.data.version import DatasetVersion, newest_version
from graftline.data.version_writing import TEST_SETS
from graftline.errors import UserError, first_line
from graftline.features.store import ActivationStore
from graftline.pipeline.retraining.keep import Keep, size
from graftline.pipeline.runs.directory import RunDirectory
from graftline.tracking.datasets_in_use import find_used_datasets
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True)
class OldDataset:
    """A dataset version to be removed.

    Attributes:
        version: it.
        bytes: that its files take.
        days: since an ingest last gave it after another one.
    """

    version: DatasetVersion
    bytes: int
    days: float
    kind: str = "dataset versions"

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.version.directory

    @property
    def name(self) -> str:
        """What it is called, for people."""
        return os.path.relpath(self.path)

    def remove(self, store: ActivationStore) -> bool:  # noqa: ARG002 - that of a `Leftover`
        """Remove it; returns whether it is gone."""
        try:
            return remove_version(self.version)
        except BlockingIOError:
            return False


def find_old_datasets(keep: Keep, tracking: Tracking, directory: Path, name: str | None = None) -> list[OldDataset]:
    """Return the dataset versions that are to be removed; those of a data set with a damaged version stay.

    Args:
        keep: what is kept by age and number.
        tracking: where it is known which are in use.
        directory: has them as NAME/DIGEST, and those of a test alone as NAME/test-sets/DIGEST.
        name: of the data set; None: all.

    Raises:
        UserError: MLflow does not answer.
    """
    found: list[DatasetVersion] = []
    for folder in sorted(path for path in directory.absolute().glob(name or "*") if path.is_dir()):
        try:
            found += [old for place in (folder, folder / TEST_SETS) for old in find_old(place, keep.runs, keep.days)]
        except UserError as error:
            warn(f"Dataset versions of {folder.name} stay ({first_line(error)}).")
    if not found:  # as usual, and then nothing else is asked
        return []
    used = {*find_used_datasets(tracking.uri), *_named_below(Path(keep.outputs))}
    return [
        OldDataset(version, size(version.directory), age(version))
        for version in found
        if version.digest not in used and (is_test_set(version) or _is_known(version))
    ]


def _is_known(version: DatasetVersion) -> bool:
    """Tell whether the newest version of a data set knows what an old one does."""
    try:
        newest = newest_version(version.directory.parent)
        return newest is not None and knows_all_of(newest, version)
    except UserError as error:
        warn(f"Dataset version {version.digest} of {version.name} stays ({first_line(error)}).")
        return False


def _named_below(outputs: Path) -> Iterator[str]:
    """Yield the digests of the dataset versions that output directories, and bundles in them, are of."""
    names = (RunDirectory(outputs).dataset.name, RunDirectory(outputs).result.name, CARD_FILE)
    for folder, _, files in os.walk(outputs):
        for name in set(names).intersection(files):
            with suppress(OSError, ValueError):
                content = json.loads(Path(folder, name).read_text(encoding="utf-8"))
                for known in (content, content.get("card") or {}):
                    yield str(known.get("dataset_digest") or known.get("digest"))
