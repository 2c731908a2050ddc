"""What a sensor knows of a folder of images: how many there are, and since when some of them wait.

A look costs one ``stat`` for each folder, whatever the number of images: adding, removing or renaming a file changes
its folder's time, and only a folder whose time has changed is listed again, without a ``stat`` for each file. A file
that is overwritten in place changes no folder; the schedule finds it.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STILL_SECONDS = 2.0  # within a clock tick of a file system, a second change may leave a folder's time as it is


@dataclass
class FolderWatch:
    """What was seen, as JSON between two looks.

    Attributes:
        seen: files when the last run was asked for that has succeeded.
        since: when more than these were first seen, in seconds since 1970; None while there are none.
        count: files at the last look.
        folders: path → time in ns (0: to be listed again), number of files, names of the folders in it.
        asked: key of the run that was asked for and has not ended; None: there is none.
        asked_count: files then.
        asked_at: when it was, or when it has failed, in seconds since 1970; None if it has succeeded.
    """

    seen: int = 0
    since: float | None = None
    count: int = 0
    folders: dict[str, list[Any]] = field(default_factory=dict)
    asked: str | None = None
    asked_count: int = 0
    asked_at: float | None = None

    @classmethod
    def from_cursor(cls, cursor: str | None) -> "FolderWatch":
        """Return what was known at the last look."""
        return cls(**json.loads(cursor)) if cursor else cls()

    def to_json(self) -> dict[str, Any]:
        """Return it for a cursor."""
        return asdict(self)

    @property
    def new(self) -> int:
        """How many more files there are than at the last run; of fewer, none."""
        return max(0, self.count - self.seen)

    def look(self, root: str, now: float) -> None:
        """Count the files below a folder, or take another time of a single file for a new one.

        Raises:
            FileNotFoundError: there is nothing, as where a disk is not mounted; nothing was changed.
        """
        folders: dict[str, list[Any]] = {}
        if not Path(root).is_dir():
            time_ns = Path(root).stat().st_mtime_ns
            self.count += self.folders.get(root, [None])[0] != time_ns
            folders[root] = [time_ns, 1, []]
        else:
            self._walk(root, now, folders)
            self.count = sum(files for _, files, _ in folders.values())
        self.folders = folders
        self.seen = min(self.seen, self.count)
        if self.new:
            self.since = self.since or now
        else:
            self.since = self.asked_at = None

    def is_due(self, new_images: int, hours: float, now: float) -> bool:
        """Tell whether enough files wait, or one for long enough; a run that has failed is followed after that time."""
        if self.asked is not None or (self.asked_at is not None and now - self.asked_at < 3600 * hours):
            return False
        return self.new >= new_images or (self.since is not None and now - self.since >= 3600 * hours)

    def ask(self, key: str, now: float) -> None:
        """Note that a run was asked for, of all files that are there."""
        self.asked, self.asked_count, self.asked_at = key, self.count, now

    def end(self, now: float, *, succeeded: bool) -> None:
        """Note how that run has ended: only one that has succeeded has seen the files."""
        self.asked, self.asked_at = None, now
        if succeeded:
            self.seen, self.since, self.asked_at = self.asked_count, None, None

    def _walk(self, root: str, now: float, folders: dict[str, list[Any]]) -> None:
        identities, left = set(), [root]
        while left:
            folder = left.pop()
            status = os.stat(folder)  # noqa: PTH116 (speed)
            if (identity := (status.st_dev, status.st_ino)) in identities:
                continue  # a link that leads back
            identities.add(identity)
            known = self.folders.get(folder)
            if known is None or known[0] != status.st_mtime_ns:
                is_still = now - status.st_mtime > STILL_SECONDS
                known = [status.st_mtime_ns if is_still else 0, *_list(folder)]
            folders[folder] = known
            left += [os.path.join(folder, name) for name in known[2]]  # noqa: PTH118 (speed)


def _list(folder: str) -> tuple[int, list[str]]:
    """Return the number of files in a folder and the names of its folders, without hidden ones."""
    files, inner = 0, []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                inner.append(entry.name)
            else:
                files += 1
    return files, inner
