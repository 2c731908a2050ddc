"""Split images into training, validation and test: stratified, and never with one group or image in two of them.

Legend: N images, S strata, P splits. A unit is what must stay together (`graftline.data.inherit`): the images of a
group, or copies of an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from graftline.data.inherit import inherit, number_units
from graftline.data.manifest import SPLITS
from graftline.data.rows import named
from graftline.errors import UserError

_USUAL_SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}


@dataclass(frozen=True)
class Split:
    """Divide images into splits (Hydra target).

    An image that an earlier version had keeps its split (`graftline.data.inherit`): shares and seed decide about new
    ones. A source that gives all three splits decides by itself, in each version anew.

    Attributes:
        train: share of the images, 0 to 1; None: what the others leave.
        validation: share of the images; None: 0.15, or its part of what the given shares leave.
        test: share of the images; None: 0.25, or its part of what the given shares leave.
        seed: another seed draws another split.
        existing: keep the source's own split where it has one, and draw from its training split what it lacks.

    Raises:
        UserError: the shares cannot add up to 1, or none is for training.
    """

    train: float | None = None
    validation: float | None = None
    test: float | None = None
    seed: int = 0
    existing: bool = True

    def __post_init__(self) -> None:
        shares = self.shares
        if min(shares.values()) < 0 or shares["train"] == 0 or not abs(sum(shares.values()) - 1) <= 1e-6:  # also NaN
            told = " + ".join(f"Split.{split}={share:g}" for split, share in self._given.items())
            raise UserError(
                f"The shares {told} cannot be met: all three must add up to 1, fewer to at most 1, none may be below "
                "0, and Split.train must be above 0."
            )

    @property
    def _given(self) -> dict[str, float]:
        return {split: float(share) for split in SPLITS if (share := getattr(self, split)) is not None}

    @property
    def shares(self) -> dict[str, float]:
        """Return the share of each split; those that are not given follow from those that are.

        >>> Split(test=0.2).shares, Split(train=0.8).shares
        ({'train': 0.65, 'validation': 0.15, 'test': 0.2}, {'train': 0.8, 'validation': 0.075, 'test': 0.125})
        """
        given = self._given
        left = 1 - sum(given.values())
        usual = {split: share for split, share in _USUAL_SHARES.items() if split not in given}
        if "train" in usual and (rest := left - sum(usual.values()) + usual["train"]) > 0:
            usual["train"] = rest
        total = sum(usual.values())
        # rounded, as 1 - 0.15 - 0.25 is not everywhere 0.6 to the last bit, and a draw depends on that
        drawn = {split: round(share / total * left, 9) for split, share in usual.items()}
        return {split: (given | drawn)[split] for split in SPLITS}

    @property
    def settings(self) -> dict[str, float]:
        """Return the shares and the seed, which only new images follow."""
        return {**self.shares, "seed": self.seed}

    def assign(self, images: pd.DataFrame, history: pd.DataFrame | None = None) -> pd.DataFrame:
        """Fill the column ``split``.

        Args:
            images: (N rows) with columns path, label, stratum, group, sha256 and split, ordered by path.
            history: where images have been before, as `DatasetVersion.history` returns it.

        Returns:
            The same rows, each in "train", "validation" or "test", or None where it can be in no split.

        Raises:
            UserError: the source's split is incomplete or has no training images.
        """
        if not self._is_given(images):
            return images.assign(split=_inherit_and_draw(images, self.shares, self.seed, history))
        self.check(images)
        in_train = images["split"] == "train"
        needed = {split: self.shares[split] for split in ("train", *self.lacking(images))}
        drawn = _inherit_and_draw(images[in_train], needed, self.seed, history)
        return images.assign(split=images["split"].mask(in_train, drawn))

    def check(self, images: pd.DataFrame) -> None:
        """Make sure that a split which the source gives can be completed.

        Raises:
            UserError: it is incomplete or has no training images.
        """
        if not self._is_given(images):
            return
        if images["split"].isna().any():
            first = images.loc[images["split"].isna(), "path"].iloc[0]
            raise UserError(
                f"{images['split'].isna().sum():,} images have no split (first: {first}): "
                "give each one, or draw a split for all with Split.existing=False."
            )
        given = set(images["split"])
        if "train" not in given:
            raise UserError(
                f"The source's own split has no training images, only {' and '.join(sorted(given))}: "
                "add some, or draw a split with Split.existing=False."
            )

    def planned(self, images: pd.DataFrame) -> set[str]:
        """Return the splits that can have images of this source: those that it gives, and those that are drawn."""
        given = self.given(images)
        return given | {split for split in SPLITS if split not in given and self.shares[split] > 0}

    def lacking(self, images: pd.DataFrame) -> list[str]:
        """Return the splits that a source with splits does not give; `assign` draws them from its training images."""
        given = self.given(images)
        return [split for split in SPLITS if given and split not in given and self.shares[split] > 0]

    def given(self, images: pd.DataFrame) -> set[str]:
        """Return the splits that the source gives itself, and that are kept."""
        return set(images["split"].dropna()) if self.existing else set()

    def draws(self, images: pd.DataFrame) -> bool:
        """Tell whether shares and seed matter for these images: their source does not say all of their splits."""
        return not self._is_given(images) or bool(self.lacking(images))

    def _is_given(self, images: pd.DataFrame) -> bool:
        return self.existing and not images["split"].isna().all()


def _inherit_and_draw(
    images: pd.DataFrame, shares: Mapping[str, float], seed: int, history: pd.DataFrame | None
) -> "pd.Series[str]":
    """Return the split of each image: inherited, else drawn; None for those that can be in none."""
    if history is None:
        return draw(images.assign(split=None), shares, seed)
    # where the source gives a split itself, what has been in it before tells nothing about the others
    history = history.assign(split=history["split"].where(history["split"].isin(list(shares))))
    splits, leaves = inherit(images, history)
    images = images.assign(split=splits)
    return draw(images[~leaves], shares, seed).reindex(images.index)


def draw(images: pd.DataFrame, shares: Mapping[str, float], seed: int) -> "pd.Series[str]":
    """Draw a split for the images that have none, stratified by label and stratum; units stay together.

    Units of several images are dealt first, the largest first, each to the split whose strata lack most; single images
    then fill each stratum up. Roundings are carried from stratum to stratum, so that those of many small strata do not
    add up. Images that have a split keep it and count: what is drawn brings the whole nearer to its shares. A split
    that would have no image, as of few large units, gets a unit that another one can spare.

    Args:
        images: (N rows) with columns label, stratum, group, sha256 and split; those of one unit all have a split or
            all have none.
        shares: split to its share; scaled to add up to 1.
        seed: of the draw.

    Returns:
        The split of each row. A label of drawn images occurs in the first of ``shares``, that of training.
    """
    generator = np.random.default_rng(seed)
    fractions = np.array(list(shares.values())) / sum(shares.values())  # (P,)
    strata = images.groupby(["label", "stratum"], dropna=False, observed=True).ngroup().to_numpy()  # (N,)
    units = number_units(images)  # (N,)
    is_single = np.bincount(units)[units] == 1  # (N,)
    chosen = pd.Categorical(images["split"], categories=list(shares)).codes.astype(np.int64)  # (N,), -1: to be drawn
    is_new = chosen < 0  # (N,)

    lacking = np.bincount(strata)[:, np.newaxis] * fractions  # (S, P) images that each split should still get
    np.subtract.at(lacking, (strata[~is_new], chosen[~is_new]), 1)
    several = _rows_by(units, np.flatnonzero(is_new & ~is_single))
    for rows in sorted((several[index] for index in generator.permutation(len(several))), key=len, reverse=True):
        chosen[rows] = _deal(lacking, strata[rows], fractions)
    carry = np.zeros(len(fractions))  # (P,)
    for rows in _rows_by(strata, np.flatnonzero(is_new & is_single)):
        wanted = _scale(lacking[strata[rows[0]]], len(rows), fractions) + carry
        counts = _whole(wanted, len(rows), fractions)
        carry = wanted - counts
        chosen[generator.permutation(rows)] = np.repeat(np.arange(len(fractions)), counts)
    _give_training_every_label(chosen, units, images["label"], is_new)
    _give_each_split_a_unit(chosen, units, images["label"], is_new, fractions)
    return named(chosen, list(shares), images.index)


def _rows_by(codes: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Return ``rows`` in parts of the same code, ordered by code."""
    rows = rows[np.argsort(codes[rows], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(codes[rows])) + 1) if len(rows) else []


def _deal(lacking: np.ndarray, strata: np.ndarray, fractions: np.ndarray) -> int:
    """Choose the split for a unit, given its images' strata, and take them off ``lacking`` (S, P)."""
    found, counts = np.unique(strata, return_counts=True)
    # the growth of the squared distances from the targets, up to what is the same for all splits:
    # (lacking - count)^2 - lacking^2, over the strata and over all images
    growth = -2 * counts @ lacking[found] - 2 * len(strata) * lacking.sum(axis=0)
    split = int(np.argmin(np.where(fractions > 0, growth, np.inf)))
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


def _give_training_every_label(
    chosen: np.ndarray, units: np.ndarray, labels: "pd.Series[str]", is_new: np.ndarray
) -> None:
    """Move one new unit of each label that training (split 0) lacks there: what is not trained cannot be learned."""
    codes = pd.factorize(labels)[0]
    for code in np.setdiff1d(codes[is_new], codes[chosen == 0]):
        chosen[units == units[is_new & (codes == code)][0]] = 0


def _give_each_split_a_unit(
    chosen: np.ndarray, units: np.ndarray, labels: "pd.Series[str]", is_new: np.ndarray, fractions: np.ndarray
) -> None:
    """Move one new unit into each split with a share and no image: the smallest of the split most above its share.

    No unit is taken that is alone in its split, or has all images of a label that training has.
    """
    sizes, first = np.bincount(units), np.unique(units, return_index=True)[1]  # (U,) each; units are numbered from 0
    for split in np.flatnonzero(fractions > 0):
        counts = np.bincount(chosen, minlength=len(fractions))  # (P,)
        if counts[split] > 0:
            continue
        trained = pd.DataFrame({"label": labels.to_numpy(), "unit": units})[chosen == 0].drop_duplicates()
        bound = trained.loc[~trained.duplicated("label", keep=False), "unit"]
        was_in = chosen[first]  # (U,)
        free = is_new[first] & (np.bincount(was_in)[was_in] > 1)
        free[bound] = False
        if free.any():
            excess = (counts - fractions * len(chosen))[was_in]  # (U,)
            chosen[units == min(np.flatnonzero(free), key=lambda unit: (-excess[unit], sizes[unit]))] = split
