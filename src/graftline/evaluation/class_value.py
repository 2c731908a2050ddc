"""Which class to label next: what the labels of each class are worth, by what is lost without half of them.

A class's labels are worth what they add to the knowledge of all classes, which no curve of its own recall shows (Tae
and Whang 2021, "Slice Tuner", arXiv 2003.04549, fit a curve per slice, and have to mend what one slice does to others).
So half of its images are taken away, those that are left count double, so that no class becomes rarer, and the head is
fitted again: one solution of linear equations. The next labels bring less than these did, all classes alike.

Letters: N training images, V validation images, F numbers per image, E equations, K classes, S seeds, R resamples.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve

from graftline.evaluation.bootstrap import multiplicities
from graftline.evaluation.head_score import Floats, Head, Ints, losses_of
from graftline.evaluation.learning_curve import Activated, Progress, draw_order
from graftline.evaluation.metrics import TAILS, Interval
from graftline.evaluation.significance import reach
from graftline.words import join_names

FEWEST_IMAGES = 4  # of a class, so that half of them are two
MOST_CLASSES = 20  # those with most of the log loss: where nothing is lost, nothing is to be gained
PER_LABELS = 100  # that the worth of labels is told for
LEVEL = 0.05  # of the claim that one class stands out; of two classes it is that of a two-sided 95 % interval

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassValue:
    """What the labels of a class are worth.

    Attributes:
        name: of the class.
        images: training images of it.
        worth: by how much 100 of its labels lower the log loss on validation images, from what half of them did.
    """

    name: str
    images: int
    worth: Interval


@dataclass(frozen=True)
class ClassValues:
    """What the labels of the classes are worth, the highest first.

    Attributes:
        values: of each class that was tried.
        best: the class whose labels are worth more than those of the others, if one surely is.
    """

    values: Sequence[ClassValue]
    best: str | None

    @property
    def sentence(self) -> str:
        """Say which class to label next."""
        if len(self.values) < 2:
            return "Which class to label next cannot be told: most classes have too few images."
        if self.best is None:
            return "Which class to label next makes no difference that these validation images could show."
        return f"Label {self.best} next: 100 labels of it lower the log loss more than 100 of the others."


def num_fits(train: Activated, class_names: Sequence[str], seeds: int) -> int:
    """Return how many heads ``class_values`` fits at most."""
    counts = np.bincount(train.labels, minlength=len(class_names))
    return seeds * min(MOST_CLASSES, int((counts >= FEWEST_IMAGES).sum()))


def class_values(
    head: Head,
    train: Activated,
    validation: Activated,
    class_names: Sequence[str],
    seeds: int,
    *,
    resamples: int = 1000,
    on_progress: Progress | None = None,
) -> ClassValues:
    """Find out what the labels of each class are worth.

    Args:
        head: fitted to all training images.
        train: N images.
        validation: V images.
        class_names: K names.
        seeds: S, how many halves of each class are tried.
        resamples: R, of an interval.
        on_progress: gets the number of heads just fitted.
    """
    losses = losses_of(head.logits(validation.activations), validation.labels)  # (V,)
    if missing := [f"“{class_names[one]}”" for one in _unseen(validation, len(class_names)).tolist()]:
        logger.warning(f"What labels of {join_names(missing)} are worth is not known: no validation image is of them.")
    tried = _costliest(train, validation, losses, len(class_names))
    counts = np.bincount(train.labels, minlength=len(class_names))
    more = np.empty((len(tried), seeds, len(losses)))  # log loss per label, of each image
    refits = _Refits.of(head, train, len(class_names))
    inputs = head.inputs(validation.activations)
    for number, class_number in enumerate(tried.tolist()):
        for seed, solution in enumerate(refits.without_half(class_number, seeds)):
            without = losses_of(head.sureness * (inputs @ solution), validation.labels)
            more[number, seed] = (without - losses) / (counts[class_number] - counts[class_number] // 2)
            if on_progress is not None:
                on_progress(1)
    names = [class_names[one] for one in tried]
    return _summarize(PER_LABELS * more, names, counts[tried], resamples, validation.drawn_groups)


def _costliest(train: Activated, validation: Activated, losses: Floats, num_classes: int) -> Ints:
    """Return the classes that are worth a try, in their order: those that have images and most of the losses (V,)."""
    lost = np.bincount(validation.labels, weights=losses, minlength=num_classes)
    lost[np.bincount(train.labels, minlength=num_classes) < FEWEST_IMAGES] = -1
    lost[_unseen(validation, num_classes)] = -1
    chosen: Ints = np.sort(np.argsort(-lost, kind="stable")[:MOST_CLASSES])
    return chosen[lost[chosen] >= 0]


def _unseen(validation: Activated, num_classes: int) -> Ints:
    """Return the classes without an image."""
    return np.flatnonzero(np.bincount(validation.labels, minlength=num_classes) == 0)


@dataclass(frozen=True)
class _Refits:
    """Fits the head again, with other weights for the images of one class.

    Attributes:
        train: N images.
        inputs: (N, E) of the regression.
        products: (E, E) left side for all images, with the penalty.
        right_side: (E, K).
    """

    train: Activated
    inputs: Floats
    products: Floats
    right_side: Floats

    @classmethod
    def of(cls, head: Head, train: Activated, num_classes: int) -> "_Refits":
        inputs = head.inputs(train.activations)
        products = inputs.T @ inputs
        products.flat[:: len(products) + 1] += len(train) * head.strength
        return cls(train, inputs, products, inputs.T @ np.eye(num_classes)[train.labels])

    def without_half(self, class_number: int, seeds: int) -> Iterator[Floats]:
        """Yield solutions (E, K) without half of a class, a different one for each seed; the others count double."""
        rows = np.flatnonzero(self.train.labels == class_number)
        images = Activated(
            self.train.activations[rows], self.train.labels[rows], [self.train.groups[row] for row in rows.tolist()]
        )
        own = self.inputs[rows]
        for seed in range(seeds):
            kept = own[draw_order(images, seed)[: len(rows) // 2]]
            weight = len(rows) / len(kept)
            products = self.products + (weight * kept.T @ kept - own.T @ own)
            right_side = self.right_side.copy()
            right_side[:, class_number] += weight * kept.sum(axis=0) - own.sum(axis=0)
            solution: Floats = solve(products, right_side, assume_a="pos", overwrite_a=True, check_finite=False)
            yield solution


def _summarize(
    more: npt.NDArray[np.float64], names: Sequence[str], counts: Ints, resamples: int, groups: Ints | None
) -> ClassValues:
    """Return what the labels are worth, given it for each class, seed and image (k, S, V), and groups (V,) if any."""
    classes, seeds, images = more.shape
    units = images if groups is None else int(groups.max()) + 1
    generator = np.random.default_rng(0)
    parts = []
    for drawn_images in multiplicities(images, resamples, 0, groups):
        means = more.reshape(-1, images) @ drawn_images / drawn_images.sum(axis=0)  # (k * S, B)
        drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), drawn_images.shape[1]) / seeds  # (B, S)
        parts.append(np.einsum("ksb,bs->kb", means.reshape(classes, seeds, -1), drawn))
    resampled = np.concatenate(parts, axis=1)  # (k, R)
    worth = more.mean(axis=(1, 2))
    lows, highs = np.quantile(resampled, TAILS, axis=1)
    order = np.argsort(-worth, kind="stable")
    values = [
        ClassValue(names[one], int(counts[one]), Interval(float(worth[one]), float(lows[one]), float(highs[one])))
        for one in order
    ]
    stands_out = bool(values) and _stands_out(worth, resampled, int(order[0]), units)
    return ClassValues(values, values[0].name if stands_out else None)


def _stands_out(worth: Floats, resampled: Floats, best: int, units: int) -> bool:
    """Tell whether the labels of a class are worth more than those of the others, which it was picked from (k of them).

    The level is divided by k (Bonferroni), as the best of many looks better than it is; ``units`` is how many images or
    groups were resampled.
    """
    if len(worth) < 2 or worth[best] <= 0:
        return False
    others = np.arange(len(worth)) != best
    ahead = worth[best] - worth[others].mean()
    error = float((resampled[best] - resampled[others].mean(axis=0)).std())
    return bool(ahead > reach(error, units, 2 * LEVEL / len(worth)))
