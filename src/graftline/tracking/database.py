"""Make the tables of a local tracking database."""

import sqlite3
from contextlib import closing
from pathlib import Path

from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

from graftline.files import atomic_file


def create_database(file: Path) -> None:
    """Create a SQLite database with MLflow's tables.

    MLflow's own migrations make them, in memory: on a disk each of their hundreds of steps waits until it is written.
    """
    engine = create_sqlalchemy_engine("sqlite://")  # type: ignore[no-untyped-call]  # MLflow has no types here
    _initialize_tables(engine)  # type: ignore[no-untyped-call]
    with atomic_file(file) as temporary, closing(sqlite3.connect(temporary)) as target, engine.connect() as tables:
        made = tables.connection.driver_connection
        assert isinstance(made, sqlite3.Connection)
        made.backup(target)
    engine.dispose()
