"""A model that was just tested, beside the one that it would replace: by what both gave for the same test images."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

from graftline.data.version import DatasetVersion
from graftline.errors import first_line
from graftline.evaluation.comparison import AccuracyDifference, compare_accuracy, format_difference, format_p_value
from graftline.evaluation.predictions import Predictions
from graftline.pipeline.contender import Contender, find_contender
from graftline.pipeline.run_choice import best_other
from graftline.tracking.names import BUNDLE_DIGEST, CHAMPION, TEST_DIGEST, VALIDATION_DIGEST, registered_name
from graftline.tracking.tracking import Tracking

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EarlierModel:
    """The champion, or the best earlier model where there is none, and what the new one gains over it.

    Attributes:
        name: for people.
        reference: as one would type it.
        gain: of the new model.
    """

    name: str
    reference: str
    gain: AccuracyDifference

    @property
    def sentence(self) -> str:
        """Say how much better the new model is."""
        gain = self.gain
        return (
            f"Against {self.name}: accuracy {format_difference('accuracy', gain.difference)}, "
            f"p {format_p_value(gain.p_value)}: {gain.verdict}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return what goes into ``result.json``."""
        return {"name": self.name, "reference": self.reference, **asdict(self.gain)}


def compare_with_earlier(
    predictions: Predictions, version: DatasetVersion, tracking: Tracking, resamples: int, seed: int
) -> EarlierModel | None:
    """Compare a model with the champion, or with the best earlier training where there is none; None without either.

    The best is so by its validation log loss, and was tested on the same images. No network is run, and whatever goes
    wrong is logged and no more: the model is trained.

    Args:
        predictions: what the model gave for its test images.
        version: has those images.
        tracking: knows the earlier models.
        resamples: that give an interval.
        seed: of the resampling.
    """
    try:
        earlier = _find_earlier(predictions, version, tracking)
        if earlier is None:
            return None
        name, contender = earlier
        if contender.predictions is None or contender.predictions.split_digest != predictions.split_digest:
            logger.info(f"There is no comparison with {name}, which was tested on other images, or has logged nothing.")
            return None
        models = {name: contender.predictions, "this model": predictions}
        return EarlierModel(name, contender.reference, compare_accuracy(models, resamples, seed))
    except Exception as error:  # of a database, a server, or a file of another graftline
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
