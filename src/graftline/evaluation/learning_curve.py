"""What more labels would bring: heads on nested subsets of the training images, and a power law through their errors.

Letters: N training images, V validation images, F numbers per image, K classes, S seeds, J sizes, R resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from graftline.data.folds import NUM_FOLDS, assign_folds
from graftline.errors import UserError
from graftline.evaluation.bootstrap import drawn_groups, multiplicities
from graftline.evaluation.head_score import Floats, Ints, fit_head
from graftline.evaluation.metrics import TAILS, Interval
from graftline.evaluation.power_law import PowerLaws, fit_power_laws
from graftline.evaluation.subset import stratified_order

STEP = 0.5**0.5  # from one size to the next smaller
MOST_STEPS, FEWEST_STEPS = (
    10,
    6,
)  # down to a 32nd of the images, which spans most curves; three numbers want seven points
FEWEST_IMAGES, FEWEST_PER_CLASS = (
    20,
    5,
)  # of the smallest size: below, a curve is still that of guessing (Hestness, fig. 6)
FEWEST_VALIDATION = 50  # of which one image is two points; fewer cannot show what is gained
RULE_OF_THREE = 3.0  # Hanley and Lippman-Hand 1983, JAMA 249(13): no error of V may still be 3/V of all

Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Activated:
    """Images as a head sees them.

    Attributes:
        activations: (N, F).
        labels: (N,) from 0 to K - 1.
        groups: of each image; those of the same one come together.
    """

    activations: npt.NDArray[np.floating]
    labels: Ints
    groups: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_groups(self) -> bool:
        """Whether any two images are of one group, and any two are not."""
        return self.drawn_groups is not None

    @cached_property
    def drawn_groups(self) -> Ints | None:
        """(N,) the number of each image's group, where groups are resampled; see `drawn_groups`."""
        return drawn_groups(self.groups)


@dataclass(frozen=True)
class Check:
    """What the curve of the smaller half would have said of the whole: twice the labels, which there are.

    Attributes:
        size: labels that the curve was fitted to at most.
        predicted: by how much the accuracy would grow, 0 to 1, by that curve; the interval takes in the scatter of the
            measurement, too.
        measured: what they brought.
    """

    size: int
    predicted: Interval
    measured: float

    @property
    def holds(self) -> bool:
        """Whether what was measured lies in the interval."""
        return self.predicted.low <= self.measured <= self.predicted.high


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """Errors of heads on nested subsets, and what follows from them.

    Attributes:
        sizes: (J,) numbers of training images, ascending; the last is all.
        wrong: (S, J, V) 1 where the head of a seed and size classifies a validation image wrongly, else 0.
        resamples: R, of an interval.
        seed: of the resampling.
        groups: (V,) number of each validation image's group, where groups are resampled; None: images are.
    """

    sizes: Ints
    wrong: npt.NDArray[np.float32]
    resamples: int = 1000
    seed: int = 0
    groups: Ints | None = None

    @property
    def images(self) -> int:
        """N, how many training images there are."""
        return int(self.sizes[-1])

    @cached_property
    def errors(self) -> Floats:
        """(J,) the mean error at each size."""
        errors: Floats = self.wrong.mean(axis=(0, 2), dtype=np.float64)
        return errors

    @cached_property
    def by_seed(self) -> Floats:
        """(S, J) the error of each seed at each size."""
        errors: Floats = self.wrong.mean(axis=2, dtype=np.float64)
        return errors

    @cached_property
    def law(self) -> PowerLaws:
        """The power law through the errors."""
        return fit_power_laws(self.sizes, self.errors[None])

    @cached_property
    def resampled(self) -> Floats:
        """(R, J) the errors of resampled validation images and seeds; both are the same for all sizes of a resample.

        Of images in groups, groups are resampled, each whole.
        """
        seeds, sizes, images = self.wrong.shape
        flat = self.wrong.reshape(-1, images)
        generator = np.random.default_rng(self.seed)
        parts = []
        for counts in multiplicities(images, self.resamples, self.seed, self.groups):
            shares = flat @ counts.astype(np.float32) / counts.sum(axis=0)  # (S * J, B)
            drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), counts.shape[1]) / seeds  # (B, S)
            parts.append(np.einsum("sjb,bs->bj", shares.reshape(seeds, sizes, -1), drawn))
        return np.concatenate(parts)

    @cached_property
    def laws(self) -> PowerLaws:
        """The power laws through the R resampled curves."""
        return fit_power_laws(self.sizes, self.resampled)

    def gain(self, factor: float) -> Interval:
        """Return by how much the accuracy would grow with ``factor`` times the labels, 0 to 1, with its interval."""
        low, high = np.quantile(self.laws.gain(self.images, factor), TAILS)
        if self.errors[-1] == 0:  # resampling cannot show errors that did not happen
            units = self.wrong.shape[2] if self.groups is None else int(self.groups.max()) + 1
            high = max(high, RULE_OF_THREE / units)
        return Interval(float(self.law.gain(self.images, factor)[0]), float(low), float(high))

    @cached_property
    def check(self) -> Check:
        """What the curve up to half of the images would have said of the other half."""
        half = int(np.flatnonzero(self.sizes <= np.ceil(self.images / 2))[-1])
        size = int(self.sizes[half])
        both = np.vstack([self.errors, self.resampled])  # (1 + R, J)
        predicted = fit_power_laws(self.sizes[: half + 1], both[:, : half + 1]).gain(size, self.images / size)
        measured = both[:, half] - both[:, -1]
        misses = predicted - measured
        low, high = np.quantile(misses[1:] - misses[0], TAILS)
        interval = Interval(float(predicted[0]), float(predicted[0] - high), float(predicted[0] - low))
        return Check(size, interval, float(measured[0]))


def subset_sizes(images: int, num_classes: int) -> Ints:
    """Return the sizes of the subsets of ``images`` training images (J,), ascending; the last is all of them.

    Raises:
        UserError: they are too few.

    >>> subset_sizes(1574, 2).tolist()
    [49, 70, 98, 139, 197, 278, 394, 556, 787, 1113, 1574]
    """
    fewest = max(FEWEST_IMAGES, FEWEST_PER_CLASS * num_classes)
    sizes = [round(images * STEP**step) for step in range(MOST_STEPS + 1)]
    kept = [size for size in sizes if size >= fewest]
    if len(kept) <= FEWEST_STEPS:
        enough = int(np.ceil(fewest / STEP**FEWEST_STEPS))
        raise UserError(
            f"A learning curve of {num_classes} classes needs {enough:,} training images or more, and there are "
            f"{images:,}: label some more first, whichever they are."
        )
    return np.array(kept[::-1], np.int64)


def draw_order(images: Activated, seed: int) -> Ints:
    """Return a random order of images (N,): each beginning has the classes in proportion; groups come one by one."""
    generator = np.random.default_rng(seed)
    if not images.has_groups:
        return stratified_order(images.labels, generator.permutation(len(images)))
    names, group = np.unique(np.array(images.groups), return_inverse=True)
    order: Ints = np.argsort(generator.permutation(len(names))[group], kind="stable")
    return order


def measure_curve(
    train: Activated,
    validation: Activated,
    num_classes: int,
    seeds: int,
    *,
    resamples: int = 1000,
    on_progress: Progress | None = None,
) -> LearningCurve:
    """Fit heads to nested subsets of the training images and count their mistakes on the validation images.

    Args:
        train: N images.
        validation: V images.
        num_classes: K.
        seeds: S, how many orders of the training images; each gives a subset of each size.
        resamples: R, of an interval.
        on_progress: gets the number of heads just fitted, of ``num_heads``.

    Raises:
        UserError: the images are too few.
    """
    check_validation(len(validation))
    sizes = subset_sizes(len(train), num_classes)
    wrong = np.empty((seeds, len(sizes), len(validation)), np.float32)
    for seed in range(seeds):
        order = draw_order(train, seed)
        for number, size in enumerate(sizes):
            if number == len(sizes) - 1 and seed > 0:  # all images, in whatever order
                wrong[seed, number] = wrong[0, number]
                continue
            rows = order[:size]
            folds = assign_folds(train.labels[rows], [train.groups[row] for row in rows.tolist()], NUM_FOLDS)
            head = fit_head(train.activations[rows], train.labels[rows], num_classes, folds)
            wrong[seed, number] = head.logits(validation.activations).argmax(axis=1) != validation.labels
            if on_progress is not None:
                on_progress(1)
    return LearningCurve(sizes, wrong, resamples, groups=validation.drawn_groups)


def num_heads(images: int, num_classes: int, seeds: int) -> int:
    """Return how many heads a curve fits."""
    return seeds * (len(subset_sizes(images, num_classes)) - 1) + 1


def check_validation(images: int) -> None:
    """Make sure that there are enough validation images.

    Raises:
        UserError: there are not.
    """
    if images < FEWEST_VALIDATION:
        raise UserError(
            f"A learning curve is measured on validation images, and there are {images:,}: give Split.validation a "
            f"share with which there are {FEWEST_VALIDATION} or more, in a new split (Ingest.parent='none')."
        )
