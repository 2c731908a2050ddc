"""The database that we make is the one that MLflow would make."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from graftline.errors import UserError
from graftline.tracking.client import connect, connect_checked
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


def test_an_address_of_postgresql_without_its_driver_is_told_which_one() -> None:
    """SQLAlchemy 2.1 would take psycopg 3, which is not installed."""
    with pytest.raises(UserError, match=r"give Tracking\.uri as postgresql\+psycopg2://…\.$"):
        connect_checked("postgresql://mlflow@127.0.0.1:9/mlflow", lambda client: client.search_experiments())
