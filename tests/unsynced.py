"""Nothing waits until it is on the disk: files and databases of tests need not outlive a power cut."""

import os
import sqlite3
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine, event


def _do_not_flush(fd: Any) -> None:
    pass


os.fsync = _do_not_flush


@event.listens_for(Engine, "connect")
def _do_not_wait(connection: Any, _record: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        with suppress(sqlite3.DatabaseError):  # a file that is none is found out where it would be without us
            connection.execute("PRAGMA synchronous = OFF")
