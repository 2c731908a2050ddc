"""The dataset version that a model was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftline.bundle.layout import CARD_FILE
from graftline.data.folds import without_fold
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.pipeline.bundles.source import REGISTERED, RUN
from graftline.pipeline.runs.directory import RunDirectory
from graftline.tracking.tracking import Tracking


def trained_on(
    card: Mapping[str, Any], reference: str, tracking: Tracking, directory: Path | None = None, argument: str = ""
) -> DatasetVersion:
    """Return the dataset version that a model was trained on, from this machine or MLflow, without its fold.

    Args:
        card: of the model.
        reference: by which the model was asked for.
        tracking: knows the runs and the names.
        directory: with dataset versions, as NAME/DIGEST; None: not known.
        argument: what ``directory`` was given as, as in ``Class.argument``.

    Raises:
        UserError: it is neither here nor there.
    """
    folder = None if directory is None else directory / str(card.get("dataset")) / str(card.get("dataset_digest"))
    if folder is None or not folder.is_dir():
        logged = logged_dataset(reference, tracking)
        if logged is None:
            where = "known" if folder is None else f"in {folder}"
            way_out = f"give {argument}, or the model" if argument else "give the model"
            raise UserError(
                f"The dataset version that {reference} was trained on is not {where}: {way_out} as MLflow knows it, "
                "models:/NAME/VERSION."
            )
        folder = logged
    return without_fold(DatasetVersion.load(folder), card.get("fold"))


def logged_dataset(reference: str, tracking: Tracking) -> Path | None:
    """Return the folder of the dataset version that a run has logged in MLflow, or that its output directory names.

    Args:
        reference: a run's id, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or a run's or bundle's directory.
        tracking: knows the runs and the names.

    Returns:
        The folder; None where a directory names none that is here.

    Raises:
        UserError: MLflow has none.
    """
    if reference.startswith(REGISTERED) or RUN.fullmatch(reference):
        return tracking.registry().dataset(reference)
    run = RunDirectory(run_of_bundle(Path(reference).expanduser()))
    folder = Path(run.read_dataset()["directory"]) if run.dataset.is_file() else None
    return folder if folder is not None and folder.is_dir() else None


def run_of_bundle(directory: Path) -> Path:
    """Return the output directory of the run that made a bundle, or the directory itself if it is no bundle."""
    return directory.parent if (directory / CARD_FILE).is_file() else directory
