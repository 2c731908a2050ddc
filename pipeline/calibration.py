"""What a bundle learns from validation images once it is trained, before it sees any of the test split."""

from dataclasses import dataclass, replace
from pathlib import Path

from graftline.bundle.predictor import Predictor
from graftline.bundle.save import add_to_card, change_answers
from graftline.data.version import DatasetVersion
from graftline.evaluation.calibration import FEWEST_IMAGES, CalibrationFit, fit_calibration, too_few
from graftline.evaluation.decision import NOT_CHOSEN, DecisionFit, DecisionRule, MostProbable
from graftline.evaluation.predictions import Predictions, predict_split
from graftline.training.budget import MOST_CALIBRATED
from graftline.training.training_source import TrainingSource


@dataclass(frozen=True)
class Adjustment:
    """What was learned from validation images.

    Attributes:
        predictor: that does what was learned.
        calibration: of its probabilities.
        decision: which class it answers.
    """

    predictor: Predictor
    calibration: CalibrationFit
    decision: DecisionFit

    @property
    def sentences(self) -> list[str]:
        """What was learned, for people."""
        return [sentence for sentence in (self.calibration.sentence, self.decision.sentence) if sentence]


def adjust(
    predictor: Predictor,
    bundle: Path,
    version: DatasetVersion,
    source: TrainingSource | None,
    rule: DecisionRule,
    seed: int,
) -> Adjustment:
    """Calibrate a bundle, choose its decision, and write both into it.

    Args:
        predictor: the bundle's, as it was saved.
        bundle: its directory.
        version: has the validation images.
        source: what it was trained on last; where that knows the validation images' logits, no image is classified.
        rule: chooses the decision.
        seed: of the folds.
    """
    num_images = len(version.samples("validation").paths)
    calibration, decision, few_do = too_few(num_images), NOT_CHOSEN, isinstance(rule, MostProbable)
    if num_images >= FEWEST_IMAGES or not few_do:
        predictions = _validation(predictor, version, source, MOST_CALIBRATED if few_do else num_images)
        calibration = fit_calibration(predictions, seed)
        decision = rule.choose(replace(predictions, logits=calibration.calibration.apply(predictions.logits)))
    add_to_card(bundle, calibration=calibration.to_json(), decision=decision.sentence or None)
    digest = change_answers(bundle, calibration.calibration, decision.decision)
    changed = replace(predictor, calibration=calibration.calibration, decision=decision.decision, digest=digest)
    return Adjustment(changed, calibration, decision)


def _validation(predictor: Predictor, version: DatasetVersion, source: TrainingSource | None, most: int) -> Predictions:
    """Return what the predictor gives for the validation images, for ``most`` of them at least."""
    version = version.part(validation=most)
    known = None if source is None else source.validation_logits()
    if known is not None and source is not None and len(known) >= len(version.samples("validation").paths):
        return predict_split(predictor, source.setup.version, "validation", known_logits=known)
    return predict_split(predictor, version, "validation")
