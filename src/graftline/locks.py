"""Locks between processes, which the kernel frees when their holder dies."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import portalocker
from portalocker import LockFlags


class Lock:
    """A lock on a file, held until it is closed, its object is gone or its process ends.

    It is portalocker and not the package filelock, whose shared locks are a SQLite database each, and belong to the
    thread that took them.

    Args:
        file: made if it is not there; its content does not matter.
        shared: any number of processes may share it; False: one alone has it.
        on_wait: called before we wait for others.
        temporary: remove the file with the lock.

    Raises:
        BlockingIOError: others have it, and ``on_wait`` is None.
    """

    def __init__(
        self, file: Path, *, shared: bool, on_wait: Callable[[], None] | None = None, temporary: bool = False
    ) -> None:
        self._temporary = file if temporary else None
        kind = LockFlags.SHARED if shared else LockFlags.EXCLUSIVE
        while True:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._file = file.open("ab")
            except FileNotFoundError:  # its folder was removed this very moment
                continue
            if not self._try(kind | LockFlags.NON_BLOCKING):
                if on_wait is None:
                    self._file.close()
                    raise BlockingIOError(f"{file} is locked by others.")
                on_wait()
                while not self._try(kind):  # Windows gives up after 10 s
                    continue
            if self._is_still(file):
                return
            self._file.close()

    def _try(self, flags: LockFlags) -> bool:
        """Tell whether we have the lock now."""
        try:
            portalocker.lock(self._file, flags)
        except portalocker.AlreadyLocked:
            return False
        return True

    def _is_still(self, file: Path) -> bool:
        """Tell whether what we have locked is what others find under that name."""
        try:
            return os.path.samestat(file.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let others have it."""
        if self._temporary is not None and not self._file.closed:
            with suppress(PermissionError):  # Windows keeps a file that is open
                self._temporary.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
