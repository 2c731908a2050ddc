"""The version that a data set grows from, given as an MLflow run or model: a directory of this machine."""

import re
from dataclasses import replace
from pathlib import Path

from graftline.data.ingest import Ingest
from graftline.errors import UserError
from graftline.tracking.tracking import Tracking

_REFERENCE = re.compile(r"models:/.+|runs:/.+|[0-9a-f]{32}")  # the last is a run's id


def with_parent(data: Ingest, tracking: Tracking) -> Ingest:
    """Return ``data`` with its parent as a directory, where it is an MLflow run or a model.

    Args:
        data: its ``parent`` may be a run's id, ``runs:/ID``, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``, all
            of which stand for the dataset version that was trained on.
        tracking: where the run or the model is looked up.

    Raises:
        UserError: there is no such run or model, or it has no dataset version; or the parent is none of all that it can
            be.
    """
    if _REFERENCE.fullmatch(data.parent) is not None:
        return replace(data, parent=str(tracking.registry().dataset(data.parent)))
    if data.parent in ("newest", "none") or Path(data.parent).expanduser().is_dir():
        return data
    raise UserError(
        f"data.parent={data.parent} is no version: give newest, none, a version's directory, an MLflow run's id or "
        "models:/NAME@ALIAS."
    )
