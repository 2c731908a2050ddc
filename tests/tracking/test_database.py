"""The database that we make is the one that MLflow would make."""

import sqlite3
from contextlib import closing
from pathlib import Path

from graftline.tracking.client import connect
from graftline.tracking.database import create_database


def content(file: Path) -> tuple[list[tuple[str, str, list[str]]], list[str]]:
    """Return all tables, indices and triggers, and all rows but the hour of MLflow's own experiment."""
    with closing(sqlite3.connect(file)) as database:
        made = database.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()
        database.execute("UPDATE experiments SET creation_time = 0, last_update_time = 0")
        rows = sorted(line for line in database.iterdump() if line.startswith("INSERT"))
    # a migration writes its constraints in no order of their own
    return [
        (kind, name, sorted(line.strip(", \t") for line in (sql or "").splitlines())) for kind, name, sql in made
    ], rows


def test_it_is_the_one_of_mlflows_migrations(tmp_path: Path, empty_database: Path) -> None:
    ours = tmp_path / "runs" / "mlflow.db"
    create_database(ours)
    assert [file.name for file in ours.parent.iterdir()] == ["mlflow.db"]
    connect(f"sqlite:///{ours}")  # MLflow adds its experiment
    schema, rows = content(ours)
    assert len(schema) > 200
    assert (schema, rows) == content(empty_database)
