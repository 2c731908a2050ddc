"""Define what a source of images is."""

from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import pandas as pd

from graftline.errors import UserError


class Source(Protocol):
    """List images; their files stay where they are and are not opened."""

    def read(self, path: Path | None) -> pd.DataFrame:
        """List the images.

        Args:
            path: where the images are, as `Ingest.path` gives it.

        Returns:
            A row per image: path (absolute) and label (None: unknown), both str; a categorical label also orders the
            classes. Optional: split ("train" | "validation" | "test"), group, weight (float), stratum.

        Raises:
            UserError: there is nothing at ``path``, or it is not what this source reads.
        """
        ...


def require(path: Path | None, what: str) -> Path:
    """Return ``path`` as absolute path, or say what it should have been.

    Args:
        path: what the user gave.
        what: a noun for it, as in "a folder".

    Raises:
        UserError: none was given, or there is nothing.
    """
    if path is None:
        raise UserError(f"Ingest.path is not given: name {what}.")
    path = path.expanduser().absolute()
    if path.exists():
        return path
    near = get_close_matches(path.name, [other.name for other in path.parent.glob("*")], n=1)
    hint = f"did you mean '{path.with_name(near[0])}'" if near else f"give the path of {what} as Ingest.path"
    raise UserError(f"There is nothing at {path}: {hint}{'?' if near else '.'}")


SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
