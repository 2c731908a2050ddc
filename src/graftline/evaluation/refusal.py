"""Choose from which distance on an image is refused as none of the classes, and find out what that is worth.

Letters: M training images, N validation images, K classes, E numbers of an embedding.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from graftline.bundle.refusal import Refusal, neighbor_distances, unit
from graftline.data.version import order_by_content
from graftline.errors import UserError
from graftline.evaluation.significance import ALPHA, holm
from graftline.words import join_names

NEIGHBOR = 5  # one odd training image does not vouch for others
MOST_REFERENCES = 2_000  # training images that a bundle keeps the embeddings of: 5 MB of 1,280 numbers each
MOST_LEFT_OUT = 20  # classes; the largest are left out one after the other
FAR_MORE = 2  # times the share that was asked for
MOST_NAMED = 8  # classes in a sentence


@dataclass(frozen=True)
class RefusalFit:
    """What was chosen.

    Attributes:
        refusal: to be used.
        left_out: share of a class's validation images that are refused where no image of it is known, by name.
        sentence: about both, and about classes of which far more is refused than of all.
    """

    refusal: Refusal
    left_out: dict[str, float]
    sentence: str


def check_refuse(refuse: float, num_images: int | None = None) -> None:
    """Make sure that so many validation images can set a threshold that refuses a share of them.

    Args:
        refuse: the share.
        num_images: None: nobody knows yet.

    Raises:
        UserError: they cannot, or it is no share.
    """
    if not 0 < refuse < 1:
        raise UserError(f"refuse is {refuse}, it must be above 0 and below 1, such as 0.01, or null.")
    if num_images is not None and _kept(refuse, num_images) > num_images:
        needed = int(np.ceil(1 / refuse - 1 - 1e-9))
        raise UserError(
            f"refuse={refuse} needs {needed:,} validation images, and there are {num_images:,}: give a larger "
            "share, or more images to the validation split."
        )


def choose_references(labels: np.ndarray, sha256: Sequence[str]) -> np.ndarray:
    """Return which training images become references: their rows (m,), in order.

    Each class gives as many, as far as it has them, so that a rare one can vouch for its own images; contents decide
    which ones. There are ``MOST_REFERENCES`` at most, but for classes so many that each gives ``NEIGHBOR``.

    Args:
        labels: (M,) numbers of classes.
        sha256: M digests of the images' files.
    """
    counts = np.bincount(labels)
    levels = range(1, int(counts.max()) + 1)
    most = bisect_right(levels, MOST_REFERENCES, key=lambda level: int(np.minimum(counts, level).sum()))
    order = order_by_content(sha256)
    order = order[np.argsort(labels[order], kind="stable")]  # class by class
    rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[labels[order]]
    return np.sort(order[rank < max(most, NEIGHBOR)])


def fit_refusal(
    training: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    class_names: Sequence[str],
    share: float,
) -> RefusalFit:
    """Choose the distance that a share of new images of the known classes exceeds, on average.

    A new image is as likely the farthest of N + 1 as each validation image: the threshold is the distance of the
    ceil((N + 1) (1 - share))-th (split conformal prediction: Bates et al. 2023, arXiv 2104.08279, section 2). What it
    refuses of a class that is not known is found out by leaving out each class in turn, from the references and the
    threshold; its network was trained on the class, where more than its head was trained.

    Args:
        training: embeddings (M, E) and labels (M,).
        validation: embeddings (N, E) and labels (N,).
        class_names: of the labels.
        share: of the images of known classes that is to be refused.
    """
    references, labels = unit(training[0]).astype(np.float16).astype(np.float32), training[1]  # as a bundle keeps them
    refusal = _fit(references, validation[0], share)
    counts = np.bincount(validation[1], minlength=len(class_names))
    left_out = {}
    for number in np.argsort(-counts, kind="stable")[:MOST_LEFT_OUT]:
        others, kept = labels != number, validation[1] != number
        if counts[number] > 0 and others.sum() >= NEIGHBOR and _kept(share, int(kept.sum())) <= kept.sum():
            without = _fit(references[others], validation[0][kept], share)
            left_out[class_names[number]] = float(without.refused(validation[0][~kept]).mean())
    found = ", ".join(f"{100 * refused:.0f} % of “{name}”" for name, refused in list(left_out.items())[:MOST_NAMED])
    sentence = (
        f"Images that lie farther from {len(references):,} training images than all but {100 * share:g} % of those of "
        "known classes are marked as refused"
    )
    checked = f"; of a class that was left out, they would be {found}" if found else ""
    unequal = _unequal(refusal.refused(validation[0]), validation[1], class_names)
    known = np.bincount(labels, minlength=len(class_names))
    few = [f"“{name}”" for name, count in zip(class_names, known, strict=True) if count < NEIGHBOR]
    told = [f"{sentence}{checked}."]
    if unequal:
        told.append(f"Far more is refused of {join_names(unequal, MOST_NAMED)}.")
    if few:
        told.append(
            f"An image is accepted by {NEIGHBOR} training images near it, and there are fewer of "
            f"{join_names(few, MOST_NAMED)}."
        )
    return RefusalFit(refusal, left_out, " ".join(told))


def _unequal(refused: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Return in words the classes of which far more validation images are refused than of all, and not by chance.

    Args:
        refused: (N,) whether each is.
        labels: (N,).
        class_names: K names.
    """
    share = float(refused.mean())
    images = np.bincount(labels, minlength=len(class_names))
    of_class = np.bincount(labels[refused], minlength=len(class_names))
    numbers = [
        number for number in np.flatnonzero(images).tolist() if of_class[number] > FAR_MORE * share * images[number]
    ]
    tests = [binomtest(int(of_class[number]), int(images[number]), share, alternative="greater") for number in numbers]
    p_values = holm([float(test.pvalue) for test in tests])
    return [
        f"“{class_names[number]}” ({of_class[number]} of {images[number]} validation images)"
        for number, p_value in zip(numbers, p_values, strict=True)
        if p_value < ALPHA
    ]


def _fit(references: np.ndarray, embeddings: np.ndarray, share: float) -> Refusal:
    neighbor = min(NEIGHBOR, len(references))
    distances = np.sort(neighbor_distances(references, embeddings, neighbor))
    kept = min(_kept(share, len(distances)), len(distances))
    return Refusal(references, neighbor, float(distances[kept - 1]), share)


def _kept(share: float, num_images: int) -> int:
    """Return which image, from the nearest, sets the threshold; beyond the last one where there are too few."""
    return int(np.ceil((num_images + 1) * (1 - share) - 1e-9))
