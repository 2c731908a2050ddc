"""The dataset version that a model was trained on."""

from pathlib import Path

from graftline.bundle.predictor import Predictor
from graftline.data.folds import without_fold
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.pipeline.bundle_source import REGISTERED, RUN
from graftline.tracking.tracking import Tracking


def trained_on(
    predictor: Predictor, reference: str, tracking: Tracking, directory: Path, argument: str
) -> DatasetVersion:
    """Return the dataset version that a model was trained on, from this machine or MLflow, without its fold.

    Args:
        predictor: of the model.
        reference: by which the model was asked for.
        tracking: knows the runs and the names.
        directory: with dataset versions, as NAME/DIGEST.
        argument: what ``directory`` was given as, as in ``Class.argument``.

    Raises:
        UserError: it is neither here nor there.
    """
    name, digest = (predictor.card.get(key) for key in ("dataset", "dataset_digest"))
    folder = directory / str(name) / str(digest)
    if not folder.is_dir():
        folder = _find(reference, tracking, folder, argument)
    return without_fold(DatasetVersion.load(folder), predictor.card.get("fold"))


def _find(reference: str, tracking: Tracking, folder: Path, argument: str) -> Path:
    """Return where MLflow has the dataset version that is not in a folder."""
    if reference.startswith(REGISTERED) or RUN.fullmatch(reference):
        return tracking.registry().dataset(reference)
    raise UserError(
        f"The dataset version that {reference} was trained on is not in {folder}: give {argument}, or the model as "
        "MLflow knows it, models:/NAME/VERSION."
    )
