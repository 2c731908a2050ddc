"""Another process that writes into a local database, so that nobody else can read or write it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

HOLDER = """
import select, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
select.select([sys.stdin], [], [], float(sys.argv[2]))  # the pipe closes with the process that has the other end
"""
FOR_GOOD = 1e6  # seconds


def hold(database: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Return the process that locks a database, for some seconds or until we end; it has the lock by then."""
    command = [sys.executable, "-c", HOLDER, str(database), str(seconds)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    return holder


@contextmanager
def locked(database: Path, seconds: float = FOR_GOOD) -> Iterator[None]:
    """Let another process lock a database until the block or its time ends, whatever is first."""
    holder = hold(database, seconds)
    try:
        yield
    finally:
        holder.communicate()


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MLflow wait for 0.2 s at each question to a locked database, and not for 20."""
    monkeypatch.setattr("mlflow.store.db.utils.sql.text", lambda statement: text(statement.replace("20000", "200")))
