"""Which of the images that a model is evaluated on have trained it: of those, its scores say nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graftline.console import warn
from graftline.data.folds import without_fold
from graftline.data.version import DatasetVersion
from graftline.errors import UserError, first_line
from graftline.pipeline.dataset_versions.trained_on import trained_on
from graftline.tracking.tracking import Tracking


def count_seen_images(
    version: DatasetVersion, split: str, cards: Mapping[str, Mapping[str, Any]], tracking: Tracking, directory: Path
) -> int:
    """Return how many images have trained a model or chosen its epoch, where what it was trained on is known; say so.

    Args:
        version: has the images.
        split: of them.
        cards: of the models, by their references.
        tracking: knows the runs and the names.
        directory: with dataset versions, as NAME/DIGEST.
    """
    sha256 = version.samples(split).sha256
    seen = np.zeros(len(sha256), bool)
    keys = ("dataset", "dataset_digest", "fold")
    alike = {tuple(card.get(key) for key in keys): (reference, card) for reference, card in cards.items()}
    for reference, card in alike.values():
        try:
            if card.get("dataset_digest") == version.digest:
                before = without_fold(version, card.get("fold"))
            else:
                before = trained_on(card, reference, tracking, directory)
        except UserError as error:
            warn(
                f"What {reference} was trained on is not known: make sure that it was none of these images "
                f"({first_line(error)})."
            )
        else:
            seen |= before.seen_in_training(sha256)
    number = int(seen.sum())
    for sentence in seen_facts(number).values():
        warn(sentence)
    return number


def seen_facts(number: int) -> dict[str, str]:
    """Return what a run's description and report say of so many images that have trained a model: of none, nothing.

    >>> seen_facts(10)["No test"]
    '10 of these images trained the bundle, or chose its epoch: it will classify others worse.'
    """
    if number == 0:
        return {}
    return {
        "No test": f"{number:,} of these images trained the bundle, or chose its epoch: it will classify others worse."
    }
