"""What runs have logged of a model's answers: it is taken where it must be the same, so that no test runs twice.

That is so for the same bundle, by its digest, which names the network, the preprocessing and the calibration, and for
the same images, by theirs, decoded likewise, on one crop. An engine, a device or a training that computed ahead may
differ in the last digits: the bundle confirms the logits of some images first.

Letters: N images, K classes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from graftline.bundle.ensemble import AnyPredictor
from graftline.bundle.predictor import Predictor
from graftline.data.version import DatasetVersion
from graftline.errors import UserError, first_line
from graftline.evaluation.evaluation import Confirmation, confirm
from graftline.evaluation.predictions import Predictions
from graftline.tracking.names import TEST, VALIDATION
from graftline.tracking.tracking import Tracking

logger = logging.getLogger(__name__)

ONE_CROP = ("1",)  # the sets of crops of which a run's predictions tell
MOST_RUNS = 5  # of a model on the images of one version, that are looked at: the newest


@dataclass(frozen=True, eq=False)
class LoggedLogits:
    """What a run has logged.

    Attributes:
        logits: (N, K), calibrated, of the images in a version's order, with the classes in the bundle's.
        run_id: of the run.
        refused: (N,) whether each image was marked as none of the classes; None: that was not told.
    """

    logits: np.ndarray
    run_id: str
    refused: np.ndarray | None = None

    def __str__(self) -> str:
        return f"what run {self.run_id} has logged of this bundle"


def find_logged(
    predictor: AnyPredictor, version: DatasetVersion, split: str, tracking: Tracking
) -> LoggedLogits | None:
    """Return what a run has logged of a model's answers for the images of a split; None where there is no such run.

    Args:
        predictor: the model.
        version: has the images.
        split: its name.
        tracking: knows the runs. That it does not answer is logged, and no more.
    """
    from mlflow.exceptions import MlflowException

    if not predictor.digest:  # of a model that was changed in memory
        return None
    registry = tracking.registry()
    folders = (VALIDATION, TEST) if split == "validation" else (TEST,)  # an evaluation's images lie in the latter
    try:
        for run in registry.runs_of_model(predictor.digest, version.test_digest, MOST_RUNS):
            for folder in folders:
                file = registry.predictions(run, of=folder)
                if file is None:
                    continue
                logged = Predictions.load(file)
                rows = _rows_of_images(logged, predictor, version, split)
                if rows is not None:
                    refused = None if logged.refused is None else logged.refused[rows]
                    return LoggedLogits(logged.logits[rows], run.id, refused)
    except (UserError, OSError, MlflowException) as error:
        logger.warning(f"What was logged of this bundle is not looked at: {first_line(error)}.")
    return None


def find_logged_of_members(
    members: Sequence[Predictor],
    crops: Sequence[str],
    version: DatasetVersion,
    split: str,
    tracking: Tracking,
    batch_size: int,
) -> dict[int, np.ndarray]:
    """Return the number of a member → what a run has logged, if the member confirms it; none for more than one crop.

    Args:
        members: the models.
        crops: names of the sets of crops.
        version: has the images.
        split: its name.
        tracking: knows the runs.
        batch_size: images per step of a network.
    """
    known, runs, least = dict[int, np.ndarray](), list[str](), list[Confirmation]()
    for number, member in enumerate(members if tuple(crops) == ONE_CROP else ()):
        logged = find_logged(member, version, split, tracking)
        if logged is None:
            continue
        found = confirm(logged.logits, replace(member, decoding=version.decoding), version, split, batch_size)
        if found.holds:
            known[number] = logged.logits
            runs.append(logged.run_id)
            least.append(found)
    if known:
        widest = max(least, key=lambda found: found.difference)
        of = f"{len(known)} of {len(members)} models are" if len(known) < len(members) else "All models are"
        of = of if len(members) > 1 else "The model is"
        logger.info(f"{of} scored by what runs have logged ({', '.join(runs)}); {widest} at most.")
    return known


def _rows_of_images(
    logged: Predictions, predictor: AnyPredictor, version: DatasetVersion, split: str
) -> list[int] | None:
    """Return where the images of a split are; None where what was logged is of another model, or of other images."""
    same = (
        logged.bundle_digest == predictor.digest
        and logged.class_names == tuple(predictor.class_names)
        and logged.split_digest == version.split_digests[split]
        and logged.decoding.identity() == version.decoding.identity()
    )
    rows = {sha256: row for row, sha256 in enumerate(logged.sha256)}
    wanted = version.samples(split).sha256
    if not same or not rows.keys() >= set(wanted):
        return None
    found = [rows[sha256] for sha256 in wanted]
    return found if np.isfinite(logged.logits[found]).all() else None
