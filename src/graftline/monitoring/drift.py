"""Whether the images of a window are others than those that a model was judged on, by an alarm with a stated budget.

Letters: M images of the reference, N of the window, S statistics, B resamples.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from graftline.bundle.reference import Observations, Reference
from graftline.data.image_facts import FACTS
from graftline.errors import UserError
from graftline.monitoring.two_sample import (
    Distance,
    Floats,
    energy_distance,
    largest_gap,
    observed_weights,
    resampled_weights,
    share_distance,
)

FEWEST_IMAGES = 20  # in fewer, nothing but the grossest change can be seen

# of the reference; an image without a group is its own. At a budget of one alarm in 365 checks, 1 of 40 unchanged
# windows rang with 10 unlike groups, 1 of 6 with 5, nearly all with 2; with 15, 20 and 30 together 1 of 240.
FEWEST_GROUPS = 15
MOST_COMPARED = 2_000  # images of a window; the reference is the smaller sample by then
RESAMPLES = 9_999
FEWEST_BEYOND = 20  # resamples that a budget lets beyond its limit, so that the limit is known to a quarter
MOST_CHECKS = 10_000  # per alarm
EMBEDDING, ANSWERS, CONFIDENCE = "embedding", "answers", "confidence"


@dataclass(frozen=True)
class Change:
    """One statistic of a window.

    Attributes:
        name: ``embedding``, ``answers``, ``confidence`` or a fact of images.
        distance: from the reference: 0 is the same; see `graftline.monitoring.two_sample`.
        usual: its median where the window is drawn from the reference.
        limit: from which it rings.
        p_value: share of resamples of the reference that lie as far from it.
        rings: whether it is beyond its limit.
    """

    name: str
    distance: float
    usual: float
    limit: float
    p_value: float
    rings: bool


@dataclass(frozen=True)
class Drift:
    """What a window differs in.

    Attributes:
        changes: one per statistic; those that ring first, then by how rare they are.
        num_images: N that were compared.
        p_value: of all of them together, in a world where nothing has changed.
        checks_per_alarm: of which one rings in such a world, on average.
    """

    changes: tuple[Change, ...]
    num_images: int
    p_value: float
    checks_per_alarm: int

    @property
    def rings(self) -> bool:
        """Whether there is an alarm."""
        return any(change.rings for change in self.changes)

    def __getitem__(self, name: str) -> Change:
        """Return the change of a name."""
        return next(change for change in self.changes if change.name == name)


def check_budget(checks_per_alarm: int) -> None:
    """Make sure that so many checks can have one false alarm.

    Raises:
        UserError: they cannot.
    """
    if not 2 <= checks_per_alarm <= MOST_CHECKS:
        raise UserError(
            f"checks_per_alarm is {checks_per_alarm}, it must be at least 2 and at most {MOST_CHECKS:,}: 365 is one "
            "false alarm a year at daily checks."
        )


def check_reference(reference: Reference) -> None:
    """Make sure that it can be told from a reference what chance does.

    Raises:
        UserError: it has too few images or groups.
    """
    groups = len(np.unique(reference.groups))
    if groups < FEWEST_GROUPS:
        images = len(reference.observed)
        had = f"{images} in {groups} group{'s' if groups > 1 else ''}" if groups < images else str(images)
        raise UserError(
            f"The model was judged on too few validation images to compare others with, {had}: it takes "
            f"{FEWEST_GROUPS}, each of another group if there are groups. Train it once more with more of them in the "
            "validation split."
        )


def find_drift(reference: Reference, window: Observations, checks_per_alarm: int = 365, seed: int = 0) -> Drift:
    """Compare a window with the reference.

    Args:
        reference: of the model.
        window: N images; of more than `MOST_COMPARED`, some are drawn.
        checks_per_alarm: how many checks of unchanged images have one alarm, on average.
        seed: of the draws.

    Raises:
        UserError: there are too few images, here or in the reference, or such a budget cannot be kept.
    """
    check_budget(checks_per_alarm)
    check_reference(reference)
    if len(window) < FEWEST_IMAGES:
        images = f"{len(window)} image{'' if len(window) == 1 else 's'} to compare"
        raise UserError(
            f"The window has {images}, and {FEWEST_IMAGES} are the fewest that can be compared: give more images, or a "
            "longer time."
        )
    window = draw(window, MOST_COMPARED, seed)
    return Chance.of(reference, len(window), checks_per_alarm, seed).judge(window)


def draw(window: Observations, most: int, seed: int) -> Observations:
    """Return a window, or some of its images where there are more than ``most``, in their order."""
    if len(window) <= most:
        return window
    return window.take(np.sort(np.random.default_rng(seed).permutation(len(window))[:most]))


def _distances(rows: Observations, reference: int) -> dict[str, Distance]:
    """Return the distance of each statistic, for rows of which the first are the reference's."""
    found: dict[str, Distance] = {}
    if rows.embeddings.shape[1] > 0:
        found[EMBEDDING] = energy_distance(rows.embeddings.astype(np.float32), reference)
    found[ANSWERS] = share_distance(rows.answers)
    found[CONFIDENCE] = largest_gap(rows.confidences, reference)
    return found | {name: largest_gap(rows.facts[:, number], reference) for number, name in enumerate(FACTS)}


@dataclass(frozen=True, eq=False)
class Chance:
    """What chance alone does to windows of a size: what any window of that size is compared with.

    As several statistics are looked at, what decides is the rarest of them, against the rarest of them in each
    resample, so that the budget holds for all together, whatever they have in common (Westfall and Young 1993,
    Resampling-based multiple testing, section 2.3).

    Attributes:
        reference: of the model.
        num_images: N.
        distances: (B,) of each statistic, sorted.
        rarest: (B,) smallest p-value of each resample, sorted.
        checks_per_alarm: how many checks of unchanged images have one alarm, on average.
    """

    reference: Reference
    num_images: int
    distances: dict[str, Floats]
    rarest: npt.NDArray[np.float64]
    checks_per_alarm: int

    @classmethod
    def of(cls, reference: Reference, num_images: int, checks_per_alarm: int, seed: int) -> "Chance":
        """Draw windows of so many images from the reference, and references as well."""
        distances = _distances(reference.observed, len(reference.observed))
        parts: dict[str, list[Floats]] = {name: [] for name in distances}
        resamples = max(RESAMPLES, FEWEST_BEYOND * checks_per_alarm)
        for weights in resampled_weights(reference.groups, num_images, resamples, seed):
            for name, distance in distances.items():
                parts[name].append(distance(weights))
        drawn = {name: np.concatenate(found) for name, found in parts.items()}
        ordered = {name: np.sort(values) for name, values in drawn.items()}
        each = [_p_values(ordered[name], values) for name, values in drawn.items()]
        rarest = np.sort(np.min(each, axis=0) - 1 / (resamples + 1))  # a resample does not count itself twice
        return cls(reference, num_images, ordered, rarest, checks_per_alarm)

    def judge(self, window: Observations) -> Drift:
        """Compare a window of N images."""
        known, size = self.reference.observed, len(self.rarest)
        allowed = self.rarest[(size + 1) // self.checks_per_alarm - 1]  # a statistic rings below this p-value
        beyond = max(0, int(np.ceil(allowed * (size + 1))) - 2)  # resamples that may lie as far as one that rings
        weights = observed_weights(len(known), len(window))
        chance, blocks = self._unseen(len(window))
        changes = []
        for name, distance in _distances(Observations.join([known, window]), len(known)).items():
            found, null = distance(weights), self.distances[name]
            p_value = float(_p_values(null, found)[0])
            limit, usual = float(null[size - 1 - beyond]), float(np.median(null))
            if name != EMBEDDING:
                p_value = max(p_value, float(chance ** (found[0] * blocks)))
                limit = max(limit, float(np.log(allowed) / np.log(chance) / blocks))
            changes.append(Change(name, float(found[0]), usual, limit, p_value, bool(p_value < allowed)))
        smallest = min(change.p_value for change in changes)
        together = (1 + np.searchsorted(self.rarest, smallest, side="right")) / (size + 1)
        changes.sort(key=lambda change: (not change.rings, change.p_value, -change.distance / max(change.limit, 1e-9)))
        return Drift(tuple(changes), len(window), float(together), self.checks_per_alarm)

    def _unseen(self, window: int) -> tuple[float, float]:
        """Return the chance that one of all images lies in the window, and how many the window has, in groups.

        Resamples hold nothing that the reference happens to lack: where all its images have one size, a single one of
        another would ring. That k odd ones of all those of reference and window lie in the window is as rare as the
        k-th power of the chance (Fisher's exact test, one margin being 0).
        """
        images = len(self.reference.observed)
        return window / (window + images), window * len(np.unique(self.reference.groups)) / images


def _p_values(null: Floats, values: Floats) -> npt.NDArray[np.float64]:
    """Return the share of sorted distances (B,) that are at least as large as each of some values, never 0."""
    beyond = len(null) - np.searchsorted(null, values, side="left")
    found: npt.NDArray[np.float64] = (1 + beyond) / (1 + len(null))
    return found


def most_moved(reference: Reference, window: Observations, change: Change) -> npt.NDArray[np.intp]:
    """Return the images of a window by how much they have moved it, those that moved it most first.

    Args:
        reference: of the model.
        window: N images.
        change: the statistic that they are to have moved. The energy distance is moved by images that are farther from
            the reference than from the rest of the window (its witness function: Gretton et al. 2012, section 2.3);
            shares of classes by those whose class has become more frequent; a number by those that few of the
            reference exceed, or few fall below.
    """
    known = reference.observed
    if change.name == EMBEDDING:
        mine, theirs = (one.embeddings.astype(np.float32) for one in (known, window))
        scores = cdist(theirs, mine).mean(axis=1) - cdist(theirs, theirs).mean(axis=1)
    elif change.name == ANSWERS:
        classes = 1 + max(int(known.answers.max()), int(window.answers.max()))
        shares = [np.bincount(one.answers, minlength=classes) / len(one) for one in (known, window)]
        scores = (shares[1] - shares[0])[window.answers]
    else:
        before, now = (numbers_of(one, change.name) for one in (known, window))
        below = np.searchsorted(np.sort(before), now, side="left") + np.searchsorted(np.sort(before), now, side="right")
        scores = np.abs(below / len(before) - 1)
        middle = float(np.median(before))
        scores = scores + np.abs(now - middle) / (1 + np.abs(now - middle).max()) / len(
            before
        )  # among equals, by distance
    return np.argsort(-scores, kind="stable")


def numbers_of(observed: Observations, name: str) -> npt.NDArray[np.float32]:
    """Return the confidences or a fact of images (N,), by the name of the statistic."""
    return observed.confidences if name == CONFIDENCE else observed.facts[:, FACTS.index(name)]
