"""A run that is gone for good, as after `mlflow gc`, which would also remove files that tests share."""

from pathlib import Path
from typing import Any

from mlflow.store.tracking import sqlalchemy_store

from graftline.tracking.client import connect


def remove_for_good(database: Path, run_id: str) -> None:
    """Delete a run and all that the database has of it; its files stay."""
    connect(f"sqlite:///{database}").delete_run(run_id)
    store: Any = sqlalchemy_store.SqlAlchemyStore  # it has no types
    store(f"sqlite:///{database}", str(database.parent))._hard_delete_run(run_id)
