"""Whose an output directory is: a file in it names the run that was the last one to write there."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from graftline.files import write_text

FOLDER = "outbox"  # in an output directory


@dataclass(frozen=True)
class Owner:
    """A run.

    Attributes:
        run_id: its id.
        uri: of its MLflow.
    """

    run_id: str
    uri: str

    def write(self, directory: Path) -> None:
        """Note in an output directory that it is this run's; the user alone reads it: a URI can hold a password."""
        write_text(owner_file(directory), json.dumps(asdict(self)) + "\n", private=True)


def owner_file(directory: Path) -> Path:
    """Return where an output directory says whose it is; it is there once a run has written."""
    return directory / FOLDER / "run.json"


def read_owner(directory: Path) -> Owner | None:
    """Return the run whose an output directory is; None where no run has written, or the file is not whole."""
    try:
        return Owner(**json.loads(owner_file(directory).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
