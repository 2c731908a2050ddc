"""What a bundle learns from validation images once it is trained, before it sees any of the test split."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from graftline.bundle.predictor import Predictor
from graftline.bundle.refusal import unit
from graftline.bundle.save import add_to_card, change_answers
from graftline.console import counted, warn
from graftline.data.version import DatasetVersion
from graftline.evaluation.calibration import FEWEST_IMAGES, CalibrationFit, fit_calibration, too_few
from graftline.evaluation.conformal import check_sets, with_sets
from graftline.evaluation.decision import NOT_CHOSEN, DecisionFit, DecisionRule, MostProbable
from graftline.evaluation.predictions import Predictions, predict_split
from graftline.evaluation.refusal import RefusalFit, check_refuse, choose_references, fit_refusal
from graftline.training.budget import MOST_CALIBRATED
from graftline.training.training_source import TrainingSource
from graftline.words import join_names

COMPARED = 4  # images whose cached activations are compared with the predictor's embeddings
SAME_DIRECTION = 0.9999  # cosine; activations kept as float16 have more


@dataclass(frozen=True)
class Wanted:
    """What a bundle is to learn from validation images, beside its calibration.

    Attributes:
        rule: chooses which class is answered.
        sets: share of new images whose set of classes is to hold the true one; None: no sets are given.
        refuse: share of the images of known classes that may be refused as none of them; None: nothing is refused.
        weighed: whether the training weighed its classes or images, which a calibration is not to take back.
    """

    rule: DecisionRule = MostProbable()  # noqa: RUF009 - immutable
    sets: float | None = None
    refuse: float | None = None
    weighed: bool = False

    @property
    def chooses(self) -> bool:
        """Whether there is more to choose than the calibration, for which all images are wanted."""
        return self.sets is not None or not isinstance(self.rule, MostProbable)

    def check_shares(self) -> None:
        """Make sure of what needs no images to be known.

        Raises:
            UserError: what is asked for is no share.
        """
        if self.sets is not None:
            check_sets(self.sets)
        if self.refuse is not None:
            check_refuse(self.refuse)

    def check(self, counts: Mapping[str, int]) -> None:
        """Make sure that so many validation images of each class suffice, before a training; warn of a class without.

        Raises:
            UserError: they do not.
        """
        self.rule.check(counts)
        if missing := [f"“{name}”" for name, count in counts.items() if count == 0]:
            warn(
                f"There is no validation image of {join_names(missing)}, so that what those images decide (such as "
                "which epoch is kept, and the calibration) takes no notice of it: add some, or, where the source gives "
                "no splits, draw them anew with data.parent=none and a larger data.split.validation."
            )
        if self.sets is not None:
            check_sets(self.sets, sum(counts.values()))
        if self.refuse is not None:
            check_refuse(self.refuse, sum(counts.values()))


@dataclass(frozen=True)
class Adjustment:
    """What was learned from validation images.

    Attributes:
        predictor: that does what was learned.
        calibration: of its probabilities.
        decision: which class it answers.
        refusal: which images are none of its classes; None where that was not asked.
        validation: what the predictor gives for the validation images; None where not all of them were classified.
    """

    predictor: Predictor
    calibration: CalibrationFit
    decision: DecisionFit
    refusal: RefusalFit | None
    validation: Predictions | None

    @property
    def sentences(self) -> list[str]:
        """What was learned, for people."""
        refusal = "" if self.refusal is None else self.refusal.sentence
        return [sentence for sentence in (self.calibration.sentence, self.decision.sentence, refusal) if sentence]


def adjust(
    predictor: Predictor,
    bundle: Path,
    version: DatasetVersion,
    source: TrainingSource | None,
    wanted: Wanted,
    seed: int,
) -> Adjustment:
    """Calibrate a bundle, choose its decision and what it refuses, and write that into it.

    Args:
        predictor: the bundle's, as it was saved.
        bundle: its directory.
        version: has the validation images.
        source: what it was trained on last; where that knows the validation images' logits, no image is classified.
        wanted: what is to be learned, beside the calibration.
        seed: of the folds.
    """
    num_images = version.num_images("validation")
    calibration, decision, raw = too_few(num_images), NOT_CHOSEN, None
    if num_images >= FEWEST_IMAGES or wanted.chooses:
        raw = _validation(predictor, version, source, num_images if wanted.chooses else MOST_CALIBRATED)
        calibration, decision = learn(raw, wanted, seed)
    refusal = None
    if wanted.refuse is not None and predictor.embedding_size is None:
        warn("refuse is left alone: this network gives no embedding, by which images could be compared.")
    elif wanted.refuse is not None:
        refusal = _fit_refusal(predictor, version, source, wanted.refuse)
    # a run that is resumed may have chosen another decision before
    notes = {"calibration": calibration.to_json(), "decision": {"sentence": decision.sentence}}
    if refusal is not None:
        notes["refusal"] = {"sentence": refusal.sentence, "left_out": refusal.left_out}
    add_to_card(bundle, **notes)
    refused = None if refusal is None else refusal.refusal
    changed = replace(
        predictor,
        calibration=calibration.calibration,
        decision=decision.decision,
        refusal=refused,
        digest=change_answers(bundle, calibration.calibration, decision.decision, refused),
    )
    validation = None
    if raw is not None and raw.split_digest == version.split_digests["validation"]:
        logits = changed.calibration.apply(raw.logits)
        validation = replace(raw, logits=logits, bundle_digest=changed.digest, decision=changed.decision)
    return Adjustment(changed, calibration, decision, refusal, validation)


def learn(raw: Predictions, wanted: Wanted, seed: int) -> tuple[CalibrationFit, DecisionFit]:
    """Fit a calibration on uncalibrated predictions of validation images, and choose a decision on calibrated ones."""
    calibration = fit_calibration(raw, seed, weighed=wanted.weighed)
    predictions = replace(raw, logits=calibration.calibration.apply(raw.logits))
    decision = wanted.rule.choose(predictions)
    if wanted.sets is not None:
        decision = with_sets(decision, predictions, wanted.sets)
    return calibration, decision


def _validation(predictor: Predictor, version: DatasetVersion, source: TrainingSource | None, most: int) -> Predictions:
    """Return what the predictor gives for the validation images, for ``most`` of them at least."""
    version = version.part(validation=most)
    known = None if source is None else source.validation_logits()
    if known is not None and source is not None and len(known) >= version.num_images("validation"):
        return predict_split(predictor, source.setup.version, "validation", known_logits=known)
    return predict_split(predictor, version, "validation")


def _fit_refusal(
    predictor: Predictor, version: DatasetVersion, source: TrainingSource | None, share: float
) -> RefusalFit:
    """Choose what is refused, by the embeddings that a head was trained on where they are known."""
    known = None if source is None else source.head_inputs()
    if known is not None and source is not None and are_embeddings(known[1], predictor, source.setup.version):
        version, training, validation = source.setup.version, *known
        samples = version.samples("train")
        rows = choose_references(samples.labels, samples.sha256)
        of_validation = version.samples("validation").labels
        return fit_refusal(
            (training[rows], samples.labels[rows]), (validation, of_validation), version.class_names, share
        )
    found = []
    for split in ("train", "validation"):
        samples = version.samples(split)
        rows = choose_references(samples.labels, samples.sha256) if split == "train" else np.arange(len(samples.paths))
        with counted(f"Embedding {split} images", len(rows)) as advance:
            paths = [samples.paths[row] for row in rows]
            embeddings = predictor.logits_and_embeddings(paths, on_progress=advance)[1]
        found.append((embeddings, samples.labels[rows]))
    return fit_refusal(found[0], found[1], version.class_names, share)


def refused_by_inputs(predictor: Predictor, source: TrainingSource | None, split: str) -> np.ndarray | None:
    """Return which images (N,) of a split are refused, by what their head was given; None where nobody knows that.

    No image is classified for it, beside a few that show whether these are the predictor's embeddings.
    """
    if predictor.refusal is None or source is None or (known := source.head_inputs()) is None:
        return None
    inputs = source.inputs(split) if are_embeddings(known[1], predictor, source.setup.version) else None
    return None if inputs is None else predictor.refusal.refused(inputs)


def are_embeddings(known: np.ndarray, predictor: Predictor, version: DatasetVersion) -> bool:
    """Tell whether what a head was given for the validation images is the predictor's embedding of a few of them."""
    embeddings = predictor.logits_and_embeddings(version.samples("validation").paths[:COMPARED])[1]
    if known.shape[1] != embeddings.shape[1]:
        return False
    cosines = (unit(known[:COMPARED]) * unit(embeddings)).sum(axis=1)
    return bool((cosines > SAME_DIRECTION).all())
