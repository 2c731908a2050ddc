"""Sets of classes that hold the true one as often as is asked: split conformal prediction.

Letters: N images, K classes.
"""

from dataclasses import replace

import numpy as np

from graftline.errors import UserError
from graftline.evaluation.decision import ROUNDING, DecisionFit
from graftline.evaluation.predictions import Predictions


def check_sets(sets: float, num_images: int | None = None) -> None:
    """Make sure that so many validation images can set the threshold of sets with a coverage.

    Args:
        sets: the coverage.
        num_images: None: nobody knows yet.

    Raises:
        UserError: they cannot, or it is no share.
    """
    if not 0 < sets < 1:
        raise UserError(f"sets is {sets}, it must be above 0 and below 1, such as 0.95, or null.")
    if num_images is not None and _missed(sets, num_images) < 1:
        needed = int(np.ceil(1 / (1 - sets) - 1 - 1e-9))
        raise UserError(
            f"sets={sets} needs {needed:,} validation images, and there are {num_images:,}: give a lower coverage, or "
            "more images to the validation split."
        )


def with_sets(fit: DecisionFit, predictions: Predictions, coverage: float) -> DecisionFit:
    """Return a decision that also gives sets, which hold the true class of a share of new images, on average.

    All classes that are at least as probable as the true class of the floor((N + 1) (1 - coverage))-th validation image
    from below are in the set (least ambiguous sets: Sadinle et al. 2019, arXiv 1609.00451, section 3), and so is the
    class that is answered, which can only raise the coverage. It holds on average over all images, not for each class.

    Args:
        fit: a decision that was chosen.
        predictions: calibrated, of N validation images.
        coverage: the share.
    """
    of_truth = np.sort(predictions.probabilities[np.arange(len(predictions.labels)), predictions.labels])
    missed = max(1, _missed(coverage, len(of_truth)))
    decision = replace(fit.decision, set_threshold=float(of_truth[missed - 1]) * (1 - ROUNDING))
    sizes = decision.sets(predictions.probabilities).sum(axis=1)
    sentence = (
        f"Sets of classes that hold the true one for {100 * coverage:g} % of new images take all classes with a "
        f"probability of {decision.set_threshold:.3f} or more: {sizes.mean():.2f} classes on average, one alone for "
        f"{100 * (sizes == 1).mean():.1f} % of {len(sizes):,} validation images."
    )
    return DecisionFit(decision, f"{fit.sentence} {sentence}".strip())


def _missed(coverage: float, num_images: int) -> int:
    """Return which image, from the lowest, sets the threshold: 1 is the lowest, 0 would be below it."""
    return int(np.floor((num_images + 1) * (1 - coverage) + 1e-9))
