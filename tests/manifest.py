"""The table of a dataset version, made up."""

from collections.abc import Sequence
from typing import Any

import pandas as pd


def manifest(labels: Sequence[str], splits: Sequence[str], **columns: Any) -> pd.DataFrame:
    """Return a table with a row for each label.

    Args:
        labels: of the images.
        splits: of the images.
        columns: what matters of the other columns: a value for all, or one for each; ``path`` else names images that do
            not exist, and ``sha256`` is the number of the row.
    """
    made_up = {
        "path": [f"/images/{number:03}.png" for number in range(len(labels))],
        "label": list(labels),
        "split": list(splits),
        "group": None,
        "weight": float("nan"),
        "stratum": None,
        "sha256": [f"{number:064x}" for number in range(len(labels))],
        "width": 8,
        "height": 8,
    }
    assert columns.keys() <= made_up.keys(), columns
    return pd.DataFrame({**made_up, **columns})
