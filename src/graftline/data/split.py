"""Training, validation and test splits: stratified, and never with one group, or one image, in two of them.

Legend: N images, S strata, P splits. A unit is what must stay together: the images of a group, or copies of an image.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from graftline.data.version import SPLITS
from graftline.errors import UserError


@dataclass(frozen=True)
class Split:
    """How images are divided (Hydra target).

    Attributes:
        train: share of the images, 0 to 1; the three add up to 1.
        validation: share of the images.
        test: share of the images.
        seed: another seed draws another split.
        existing: keep the source's own split where it has one, and draw from its training split what it lacks.
    """

    train: float = 0.60
    validation: float = 0.15
    test: float = 0.25
    seed: int = 0
    existing: bool = True

    def assign(self, images: pd.DataFrame) -> pd.DataFrame:
        """Fill the column ``split``.

        Args:
            images: (N rows) with columns path, label, stratum, group, sha256 and split, ordered as ever.

        Returns:
            The same rows, each in "train", "validation" or "test".

        Raises:
            UserError: the shares do not add up to 1, or the source's split is incomplete or has no training images.
        """
        shares = {split: float(getattr(self, split)) for split in SPLITS}
        if min(shares.values()) < 0 or self.train == 0 or abs(sum(shares.values()) - 1) > 1e-6:
            told = " + ".join(f"{share:g}" for share in shares.values())
            raise UserError(f"data.split.train + validation + test is {told}: make it 1, with some for training.")
        if not self.existing or images["split"].isna().all():
            return images.assign(split=draw(images, shares, self.seed))
        if images["split"].isna().any():
            first = images.loc[images["split"].isna(), "path"].iloc[0]
            raise UserError(
                f"{images['split'].isna().sum():,} images have no split (first: {first}): "
                "give each one, or set data.split.existing=false to draw a split for all."
            )
        given = set(images["split"])
        if "train" not in given:
            raise UserError(
                f"The source's own split has no training images, only {' and '.join(sorted(given))}: "
                "add some, or set data.split.existing=false to draw a split."
            )
        in_train = images["split"] == "train"
        needed = {split: shares[split] for split in ("train", *self.lacking(images))}
        return images.assign(split=images["split"].mask(in_train, draw(images[in_train], needed, self.seed)))

    def lacking(self, images: pd.DataFrame) -> list[str]:
        """Return the splits that a source with splits does not give; `assign` draws them from its training images."""
        given = set(images["split"].dropna()) if self.existing else set()
        return [split for split in SPLITS if given and split not in given and getattr(self, split) > 0]


def draw(images: pd.DataFrame, shares: dict[str, float], seed: int) -> "pd.Series[str]":
    """Draw a split, stratified by label and stratum; images of one group or of the same content stay together.

    Units of several images are dealt first, the largest first, each to the split whose strata lack most; single images
    then fill each stratum up. Roundings are carried from stratum to stratum, so that those of many small strata do not
    add up.

    Args:
        images: (N rows) with columns label, stratum, group and sha256.
        shares: split to its share; scaled to add up to 1.
        seed: of the draw.

    Returns:
        The split of each row. Every label occurs in the first of ``shares``, which is that of training.
    """
    generator = np.random.default_rng(seed)
    fractions = np.array(list(shares.values())) / sum(shares.values())  # (P,)
    strata = images.groupby(["label", "stratum"], dropna=False, observed=True).ngroup().to_numpy()  # (N,)
    units = _units(images)  # (N,)
    is_single = np.bincount(units)[units] == 1  # (N,)
    chosen = np.zeros(len(images), dtype=np.int64)  # (N,) indices of splits

    lacking = np.bincount(strata)[:, np.newaxis] * fractions  # (S, P) images that each split should still get
    several = _rows_by(units, np.flatnonzero(~is_single))
    for rows in sorted((several[index] for index in generator.permutation(len(several))), key=len, reverse=True):
        chosen[rows] = _deal(lacking, strata[rows])
    carry = np.zeros(len(fractions))  # (P,)
    for rows in _rows_by(strata, np.flatnonzero(is_single)):
        wanted = _scale(lacking[strata[rows[0]]], len(rows), fractions) + carry
        counts = _whole(wanted, len(rows), fractions)
        carry = wanted - counts
        chosen[generator.permutation(rows)] = np.repeat(np.arange(len(fractions)), counts)
    _give_training_every_label(chosen, units, images["label"])
    return pd.Series(np.array(list(shares))[chosen], index=images.index, dtype="str")


def _units(images: pd.DataFrame) -> np.ndarray:
    """Return (N,) numbers of units: rows that share a group or a content, directly or through others, share one."""
    contents = pd.Series(pd.factorize(images["sha256"])[0], index=images.index)
    units = contents
    while True:
        merged = units.groupby(images["group"]).transform("min").fillna(units)
        merged = merged.groupby(contents).transform("min").astype(np.int64)
        if merged.equals(units):
            return units.to_numpy()
        units = merged


def _rows_by(codes: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Return ``rows`` in parts of the same code, ordered by code."""
    rows = rows[np.argsort(codes[rows], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(codes[rows])) + 1) if len(rows) else []


def _deal(lacking: np.ndarray, strata: np.ndarray) -> int:
    """Choose the split for a unit, given its images' strata, and take them off ``lacking`` (S, P)."""
    found, counts = np.unique(strata, return_counts=True)
    # the growth of the squared distances from the targets, up to what is the same for all splits:
    # (lacking - count)^2 - lacking^2, over the strata and over all images
    growth = -2 * counts @ lacking[found] - 2 * len(strata) * lacking.sum(axis=0)
    split = int(np.argmin(growth))
    lacking[found, split] -= counts
    return split


def _scale(lacking: np.ndarray, total: int, fractions: np.ndarray) -> np.ndarray:
    """Scale (P,) what the splits lack to ``total`` images; where units have overfilled all, by the fractions."""
    lacking = np.clip(lacking, 0, None)
    return total * (lacking / lacking.sum() if lacking.sum() > 0 else fractions)


def _whole(wanted: np.ndarray, total: int, fractions: np.ndarray) -> np.ndarray:
    """Round (P,) to integers that add up to ``total``, by the largest remainders."""
    wanted = _scale(wanted, total, fractions)
    counts: np.ndarray = np.floor(wanted).astype(np.int64)
    counts[np.argsort(counts - wanted, kind="stable")[: total - counts.sum()]] += 1
    return counts


def _give_training_every_label(chosen: np.ndarray, units: np.ndarray, labels: "pd.Series[str]") -> None:
    """Move one unit of each label that training (split 0) lacks there: what is not trained cannot be learned."""
    codes = pd.factorize(labels)[0]
    for code in np.setdiff1d(codes, codes[chosen == 0]):
        chosen[units == units[codes == code][0]] = 0
