"""Find and remove dataset versions that later ones have taken the place of.

A new version grows from the newest one alone, which knows the splits of all images that it or those before it had, and
what people have decided on them; nobody follows the chain of parents further back.
"""

import re
import shutil
import time
from datetime import datetime
from pathlib import Path

from graftline.data.decisions import with_class_names
from graftline.data.departed import find_departed
from graftline.data.version import DatasetVersion
from graftline.data.version_writing import LOCK_FILE, TEST_SETS
from graftline.errors import UserError
from graftline.locks import Lock

SECONDS_PER_DAY = 86_400.0
_DIGEST = re.compile(r"[0-9a-f]{16}")
_REMOVED = ".removed"  # beside the versions: one on its way out


def find_old(folder: Path, number: int, days: float) -> list[DatasetVersion]:
    """Return the versions of a data set that are old, the newest first.

    Args:
        folder: has them as ``<digest>/``; other things in it are left alone.
        number: of the newest versions that are none of them; the newest one never is.
        days: since an ingest last gave such a version after another one.

    Raises:
        UserError: a version is damaged, or a later graftline wrote it.
    """
    files = [file for file in folder.glob("*/summary.json") if _DIGEST.fullmatch(file.parent.name)]
    found = [DatasetVersion.load(file.parent) for file in files if not file.parent.is_symlink()]
    found.sort(key=lambda version: version.ingested, reverse=True)
    return [version for version in found[max(number, 1) :] if age(version) >= days]


def age(version: DatasetVersion) -> float:
    """Return the days since an ingest last gave a version after another one."""
    return (time.time() - datetime.fromisoformat(version.ingested).timestamp()) / SECONDS_PER_DAY


def knows_all_of(newest: DatasetVersion, version: DatasetVersion) -> bool:
    """Tell whether the newest version knows of all images where they were in another one, and all decisions on them.

    It does not where that one is of another chain of versions, as after an ingest with ``parent="none"``.

    Raises:
        UserError: one of the two has lost a file.
    """
    decided, known = (
        set(decisions[["sha256", "label"]].itertuples(index=False, name=None))
        for decisions in (with_class_names(version.decisions(), newest.class_names), newest.decisions())
    )
    return decided <= known and find_departed(newest.history(), [version.history()], None).empty


def is_test_set(version: DatasetVersion) -> bool:
    """Tell whether a version is of images that a model was only tested on, from which none grows."""
    folder = version.directory.parent
    return folder.name == TEST_SETS and folder.parent.name == version.name  # a data set may have that name, too


def remove_version(version: DatasetVersion) -> bool:
    """Remove a version, whole or not at all; returns whether it is gone: not if it has become the newest meanwhile.

    Raises:
        BlockingIOError: an ingest of the data set is at work.
    """
    folder = version.directory.parent
    data_set = folder.parent if is_test_set(version) else folder
    with Lock(data_set / LOCK_FILE, shared=False, temporary=True):
        try:
            if DatasetVersion.load(version.directory).ingested != version.ingested:
                return False
        except UserError:  # another process has removed it
            return not version.directory.exists()
        shutil.rmtree(folder / _REMOVED, ignore_errors=True)  # of one that was killed
        version.directory.rename(folder / _REMOVED)
        shutil.rmtree(folder / _REMOVED, ignore_errors=True)
    return True
