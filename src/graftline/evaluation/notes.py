"""What a reader must know before believing the scores, in sentences."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from graftline.evaluation.bootstrap import Ints
from graftline.evaluation.metrics import HEADLINES, Interval
from graftline.evaluation.predictions import Predictions
from graftline.words import join_names

FEW_IMAGES = 10  # below this one image moves a recall by more than ten points
MOST_NAMES = 8  # in one sentence
FEW_GROUPS = 20  # Cameron and Miller 2015, Journal of Human Resources 50(2), section VI: from 20 on they are many


def notes_on(predictions: Predictions, scores: Mapping[str, Interval]) -> list[str]:
    """Say where the scores need care: classes without images or predictions, few images, intervals that mislead.

    Args:
        predictions: of N images and K classes.
        scores: what :func:`graftline.evaluation.metrics.score` said of them.

    Returns:
        One sentence or two per note, the first about the accuracy of always answering the commonest class.
    """
    class_names = predictions.class_names
    num_images, num_classes = len(predictions.labels), len(class_names)
    counts = np.bincount(predictions.labels, minlength=num_classes)
    predicted_counts = np.bincount(predictions.predicted, minlength=num_classes)
    commonest = int(counts.argmax())
    guessed = f"{100 * counts[commonest] / num_images:.1f} %"
    notes = [
        f"Always answering “{class_names[commonest]}” would be right for {guessed} of these {num_images:,} images."
    ]

    if (groups := predictions.num_groups) < num_images:
        notes.append(f"{groups_in_words(num_images, groups)}.")
    absent = np.flatnonzero(counts == 0)
    if len(absent):
        notes.append(
            f"No images of {_names(absent, class_names)}: {'it has' if len(absent) == 1 else 'they have'} "
            "no recall and no part in the macro averages of recall and AUROC."
        )
    unpredicted = np.flatnonzero((predicted_counts == 0) & (counts > 0))
    if len(unpredicted):
        notes.append(f"Never predicted, so without a precision: {_names(unpredicted, class_names)}.")
    rare = np.flatnonzero((counts > 0) & (counts < FEW_IMAGES))
    if len(rare):
        notes.append(
            f"Fewer than {FEW_IMAGES} images of {_names(rare, class_names, counts)}: a single image moves these "
            "recalls by more than ten points, and their intervals, which leave out the resamples without any of these "
            "images, are too narrow, unless all or none were found."
        )
    return notes + _on_intervals(predictions, scores)


def groups_in_words(images: int, groups: int) -> str:
    """Say what the groups of images mean for intervals, in a sentence without its full stop.

    >>> groups_in_words(300, 40)
    'The 300 images are of 40 groups, which are drawn whole: intervals allow for images of one group being alike'
    """
    if groups == 1:
        return f"All {images:,} images are of one group: intervals are of other images of it, and not of another group"
    few = " (too little, with so few of them)" if groups < FEW_GROUPS else ""
    return (
        f"The {images:,} images are of {groups:,} groups, which are drawn whole: intervals allow for images of one "
        f"group being alike{few}"
    )


def _on_intervals(predictions: Predictions, scores: Mapping[str, Interval]) -> list[str]:
    notes = []
    if scores["accuracy"].value == 1:
        units = "images" if predictions.drawn_groups is None else "groups of images"
        notes.append(
            "No image was classified wrongly, and resampling cannot show errors that did not happen: the intervals are "
            f"Wilson's, of {predictions.num_drawn:,} {units}."
        )
    outside = [
        HEADLINES[name] for name, one in scores.items() if name in HEADLINES and not one.low <= one.value <= one.high
    ]
    if outside:
        # for ECE: Kumar et al. 2019, arXiv 1909.10155, section 2: the plug-in estimate is biased upwards
        notes.append(
            f"The value lies outside its own interval for {', '.join(outside)}: resampling adds scatter of its own to "
            "this score, so read the interval as a cautious bound."
        )
    return notes


def _names(numbers: Iterable[int], class_names: Sequence[str], counts: Ints | None = None) -> str:
    """List classes, the first few by name.

    >>> _names([0, 2], ["ant", "bee", "cow"], np.array([3, 20, 1]))
    '“ant” (3), “cow” (1)'
    """
    names = [f"“{class_names[one]}”" + ("" if counts is None else f" ({counts[one]})") for one in numbers]
    return join_names(names, MOST_NAMES)
