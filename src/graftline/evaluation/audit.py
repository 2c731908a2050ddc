"""The audit of a data set: probable label errors, images that are almost the same, odd images; one table of them all.

Letters: N images, F numbers per image, K classes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from graftline.data.decisions import COLUMNS
from graftline.data.image_facts import ImageFacts
from graftline.data.manifest import SPLITS
from graftline.evaluation.head_score import Ints
from graftline.evaluation.label_errors import LabelErrors, find_label_errors, units_of
from graftline.evaluation.near_duplicates import Likeness, find_near_duplicates
from graftline.evaluation.odd_images import find_odd_images
from graftline.words import join_names

LARGEST_UNIT = 0.1  # of the images: where more of them are linked, one like the next, they are alike but no copies

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found of N images.

    Attributes:
        images: a row per image, with columns sha256, path, label and split.
        class_names: K names.
        errors: what heads make of the labels.
        pairs: images that are almost the same; columns first, second (rows of ``images``), pixels, features. Of the
            copies of a file the first stands for all, as a decision on an image is one on all of them.
        odd: images that differ from the others; columns row, name, value, usual, distance.
    """

    images: pd.DataFrame
    class_names: Sequence[str]
    errors: LabelErrors
    pairs: pd.DataFrame
    odd: pd.DataFrame

    @cached_property
    def likely_errors(self) -> Ints:
        """Rows of images whose label is probably wrong, the likeliest first."""
        rows = np.flatnonzero(self.errors.likely)
        order: Ints = rows[np.argsort(self.errors.quality[rows], kind="stable")]
        return order

    @cached_property
    def across(self) -> pd.Series:
        """Whether a pair lies in two splits: what is tested on is then trained on."""
        splits = self.images["split"].to_numpy()
        return pd.Series(splits[self.pairs["first"]] != splits[self.pairs["second"]], index=self.pairs.index)

    def decisions(self, settled: pd.DataFrame) -> pd.DataFrame:
        """Return the table that a person fills in: a row for each image that is worth a look.

        Args:
            settled: decisions on images, of which nothing is asked any more; with columns sha256 and label.

        Returns:
            Columns sha256, path, label, suggested, score, reason and decision, which is empty. The score is the
            probability of the label, by heads that have not seen the image; NaN if it cannot be checked. Probable label
            errors come first.
        """
        reasons: dict[int, list[str]] = {}
        for row in self.likely_errors.tolist():
            reasons.setdefault(row, []).append("the label is probably wrong")
        for row, reason in self._duplicates().items():
            reasons.setdefault(row, []).append(reason)
        for row, name, value, usual in self.odd[["row", "name", "value", "usual"]].itertuples(index=False, name=None):
            reasons.setdefault(int(row), []).append(f"{name}: {value:.3g}, usual is {usual:.3g}")
        rows = list(reasons)
        table = self.images.iloc[rows].assign(
            suggested=[self._suggestion(row) for row in rows],
            score=self.errors.quality[rows].round(4),
            reason=["; ".join(reasons[row]) for row in rows],
            decision="",
        )
        table = table.drop_duplicates(["sha256", "label"])
        asked = table.merge(settled[["sha256", "label"]], on=["sha256", "label"], how="left", indicator=True)
        return asked.loc[asked["_merge"] == "left_only", list(COLUMNS)].reset_index(drop=True)

    def _suggestion(self, row: int) -> str:
        return self.class_names[int(self.errors.suggested[row])] if self.errors.likely[row] else ""

    def _duplicates(self) -> dict[int, str]:
        """Return the images that could go, of each pair that of the split which is trained on, and their best likes."""
        first, second = (self.pairs[side].to_numpy(np.int64) for side in ("first", "second"))
        splits, labels, paths = (self.images[column].tolist() for column in ("split", "label", "path"))
        places = np.array([SPLITS.index(split) for split in splits])
        is_first = places[first] < places[second]
        going, staying = np.where(is_first, first, second), np.where(is_first, second, first)
        found: dict[int, str] = {}
        for goes, stays in zip(going.tolist(), staying.tolist(), strict=True):
            if goes not in found:
                label = "" if labels[stays] == labels[goes] else f", labeled {labels[stays]}"
                found[goes] = f"almost the same as {paths[stays]} ({splits[stays]}{label})"
        return found


def audit(
    images: pd.DataFrame,
    activations: npt.NDArray[np.floating],
    labels: Ints,
    class_names: Sequence[str],
    groups: Sequence[str],
    facts: ImageFacts,
    likeness: Likeness,
) -> Audit:
    """Audit a data set.

    Args:
        images: a row per image, with columns sha256, path, label and split.
        activations: (N, F), of the network's frozen part.
        labels: (N,) from 0 to K - 1.
        class_names: K names.
        groups: of each image; those of one group are never in two folds.
        facts: of the N images.
        likeness: how alike images must be to count as almost the same.

    Raises:
        UserError: cleanlab is not installed.
    """
    pairs = find_near_duplicates(facts.thumbnails, activations, likeness)
    units = units_of(groups, pairs)
    if len(pairs) and np.bincount(units).max() > LARGEST_UNIT * len(labels):
        units = units_of(groups, pairs.iloc[:0])
    errors = find_label_errors(activations, labels, len(class_names), units)
    _tell_of_unchecked(class_names, labels[np.isnan(errors.quality)])
    is_copy = images.duplicated(["sha256", "label"]).to_numpy()
    pairs = pairs[~(is_copy[pairs["first"]] | is_copy[pairs["second"]])].reset_index(drop=True)
    return Audit(images.reset_index(drop=True), class_names, errors, pairs, find_odd_images(facts.table))


def _tell_of_unchecked(class_names: Sequence[str], labels: Ints) -> None:
    """Say of which classes no image's label can be checked, given the labels of these images."""
    if not len(labels):
        return
    counts = np.bincount(labels)
    names = [f"“{class_names[number]}” ({counts[number]:,})" for number in np.flatnonzero(counts).tolist()]
    logger.warning(
        f"{len(labels):,} label{'s' if len(labels) > 1 else ''} cannot be checked: all images of {join_names(names)} "
        "are of one group or almost the same, or there is only one: the head that judges them has not seen the class."
    )
