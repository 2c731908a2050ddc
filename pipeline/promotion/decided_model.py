"""Which registered model promote, history and rollback are about, and the decisions on it."""

from pathlib import Path

from graftline.errors import UserError
from graftline.tracking.promotions import Promotions
from graftline.tracking.registry import NUM_LISTED
from graftline.tracking.tracking import Tracking


def open_promotions(tracking: Tracking, model: str | None, copies: str | None) -> Promotions:
    """Return the decisions on a model.

    Args:
        tracking: where the models are registered.
        model: its name; None: the only one.
        copies: folder where this machine keeps the lines of the ledger that it has seen; None: it keeps none.

    Raises:
        UserError: it is not clear which one is the only one, or MLflow does not answer.
    """
    return Promotions(tracking, model or _only_model(tracking), None if copies is None else Path(copies))


def _only_model(tracking: Tracking) -> str:
    names = tracking.registry().names()
    if len(names) != 1:
        told = (
            f"there are {', '.join(names[:NUM_LISTED])}: give its name as model=NAME"
            if names
            else "there is none: train one"
        )
        raise UserError(f"Which registered model is meant is not clear, {told}.")
    return names[0]
