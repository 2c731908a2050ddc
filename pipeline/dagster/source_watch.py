"""What a sensor knows of a folder of images: how many there are, and since when some of them wait.

A look costs one ``stat`` for each folder, whatever the number of images: adding, removing or renaming a file changes
its folder's time, and only a folder whose time has changed is listed again, without a ``stat`` for each file. A file
that is overwritten in place changes no folder; the schedule finds it.
"""

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STILL_SECONDS = 2.0  # within a clock tick of a file system, a second change may leave a folder's time as it is


@dataclass
class FolderWatch:
    """What was seen, as JSON between two looks.

    Attributes:
        seen: files when a run was last asked for.
        since: when more than these were first seen, in seconds since 1970; None while there are none.
        count: files at the last look.
        folders: path → time in ns (0: to be listed again), number of files, names of the folders in it.
    """

    seen: int = 0
    since: float | None = None
    count: int = 0
    folders: dict[str, list[Any]] = field(default_factory=dict)

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
            is_new = self.folders.get(root, [None])[0] != time_ns
            folders[root] = [time_ns, 1, []]
            self.count = self.seen + 1 if is_new or self.new else self.seen
        else:
            self._walk(root, now, folders)
            self.count = sum(files for _, files, _ in folders.values())
        self.folders = folders
        self.seen = min(self.seen, self.count)
        self.since = (self.since or now) if self.new else None

    def is_due(self, new_images: int, hours: float, now: float) -> bool:
        """Tell whether enough files wait, or one for long enough."""
        return self.new >= new_images or (self.since is not None and now - self.since >= 3600 * hours)

    def start_anew(self) -> None:
        """Take all that is there for seen: a run was asked for."""
        self.seen, self.since = self.count, None

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


def look(cursor: dict[str, Any] | None, root: str) -> FolderWatch:
    """Return what is there now, from what was there before."""
    watch = FolderWatch(**cursor) if cursor else FolderWatch()
    watch.look(root, time.time())
    return watch
