"""Calibrate a trained bundle on validation images, before it sees any of the test split."""

from dataclasses import replace
from pathlib import Path

from graftline.bundle.predictor import Predictor
from graftline.bundle.save import add_to_card, write_calibration
from graftline.data.version import DatasetVersion
from graftline.evaluation.calibration import FEWEST_IMAGES, CalibrationFit, fit_calibration, too_few
from graftline.evaluation.predictions import Predictions, predict_split
from graftline.training.budget import MOST_CALIBRATED
from graftline.training.training_source import TrainingSource


def calibrate(
    predictor: Predictor, bundle: Path, version: DatasetVersion, source: TrainingSource | None, seed: int
) -> tuple[Predictor, CalibrationFit]:
    """Fit a calibration and write it into the bundle.

    Args:
        predictor: the bundle's, uncalibrated.
        bundle: its directory.
        version: has the validation images.
        source: what it was trained on last; where that knows the validation images' logits, no image is classified.
        seed: of the folds.

    Returns:
        The calibrated predictor, and what came of the fit.
    """
    num_images = len(version.samples("validation").paths)
    if num_images < FEWEST_IMAGES:
        fit = too_few(num_images)
    else:
        fit = fit_calibration(_validation(predictor, version, source), seed)
    add_to_card(bundle, calibration=fit.to_json())
    digest = write_calibration(bundle, fit.calibration)
    return replace(predictor, calibration=fit.calibration, digest=digest), fit


def _validation(predictor: Predictor, version: DatasetVersion, source: TrainingSource | None) -> Predictions:
    """Return what the predictor gives for the validation images, for some of them where it has to classify them."""
    known = None if source is None else source.validation_logits()
    if known is None:
        return predict_split(predictor, version.part(validation=MOST_CALIBRATED), "validation")
    assert source is not None
    return predict_split(predictor, source.setup.version, "validation", known_logits=known)
