"""A model that was just tested, beside the one that it would replace: by what both gave for the same test images."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

from graftline.data.version import DatasetVersion
from graftline.errors import UserError, first_line
from graftline.evaluation.comparison import Comparison, compare, format_difference, format_p_value
from graftline.evaluation.predictions import Predictions
from graftline.pipeline.evaluating.contender import Contender, find_contender
from graftline.pipeline.runs.choice import best_other
from graftline.tracking.names import BUNDLE_DIGEST, CHAMPION, TEST_DIGEST, VALIDATION_DIGEST, registered_name
from graftline.tracking.tracking import Tracking

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EarlierModel:
    """The champion, or the best earlier model where there is none, and how the new one compares with it.

    Attributes:
        name: for people.
        reference: as one would type it.
        comparison: of the new model, its one row, with it.
    """

    name: str
    reference: str
    comparison: Comparison

    @property
    def sentence(self) -> str:
        """Say how much better the new model is."""
        row = self.comparison.rows[0]
        return (
            f"Against {self.name}: accuracy {format_difference('accuracy', row.differences['accuracy'])}, "
            f"p {format_p_value(row.p_value)}: {row.verdict}. {self.comparison.decision_note}"
        ).strip()

    def to_json(self) -> dict[str, Any]:
        """Return what goes into ``result.json``."""
        row = self.comparison.rows[0]
        gain = {"won": row.won, "lost": row.lost, "p_value": row.p_value, "verdict": row.verdict}
        difference = asdict(row.differences["accuracy"])
        return {"name": self.name, "reference": self.reference, "difference": difference, **gain}


def compare_with_earlier(
    predictions: Predictions, version: DatasetVersion, tracking: Tracking, resamples: int, seed: int
) -> EarlierModel | None:
    """Compare a model with the champion, or with the best earlier training where there is none; None without either.

    The best is so by its validation log loss, and was tested on the same images. No network is run. That MLflow does
    not answer, or a file cannot be read, is logged and no more: the model is trained.

    Args:
        predictions: what the model gave for its test images.
        version: has those images.
        tracking: knows the earlier models.
        resamples: that give an interval.
        seed: of the resampling.
    """
    from mlflow.exceptions import MlflowException

    try:
        earlier = _find_earlier(predictions, version, tracking)
        if earlier is None:
            return None
        name, contender = earlier
        earlier_predictions = contender.predictions()
        if earlier_predictions is None or earlier_predictions.split_digest != predictions.split_digest:
            logger.info(f"There is no comparison with {name}, which was tested on other images, or has logged nothing.")
            return None
        models = {name: earlier_predictions, "this model": predictions}
        return EarlierModel(name, contender.reference, compare(models, resamples=resamples, seed=seed))
    except (UserError, OSError, MlflowException) as error:
        logger.warning(f"The model is not compared with an earlier one: {first_line(error)}.")
        return None


def _find_earlier(
    predictions: Predictions, version: DatasetVersion, tracking: Tracking
) -> tuple[str, Contender] | None:
    """Return what the model is compared with, and what that is in words."""
    registry, name = tracking.registry(), registered_name(version.name)
    champion = registry.aliased(name, CHAMPION)
    if champion is not None:
        if champion.tags.get(BUNDLE_DIGEST) == predictions.bundle_digest:
            return None
        return f"the champion {name}/{champion.version}", find_contender(champion.uri, tracking)
    images = {VALIDATION_DIGEST: version.split_digests["validation"], TEST_DIGEST: version.test_digest}
    best = best_other(registry, tracking.experiment or version.name, images, predictions.bundle_digest)
    return None if best is None else (f"the best earlier model, {best.name}", find_contender(best.id, tracking))
