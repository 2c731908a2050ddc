"""How good a head would be on given activations, in seconds: ridge regression solved in closed form, fold by fold.

Letters: N images, F numbers per image, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve
from scipy.optimize import minimize_scalar

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NUM_FOLDS = 5  # Hastie, Tibshirani and Friedman 2009, section 7.10: five or ten, of which five take half the time
# Strengths of the penalty, relative to the number of images: the activations have unit variance, so that at 1 the mean
# direction is shrunk to half. The best is chosen by the folds.
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
INTERCEPT = 10.0  # the constant beside the activations, so large that its weight is hardly shrunk
LOG_SCALES = (-2.0, 6.0)  # of the logits, natural logarithm: from hardly sure to as sure as can be


@dataclass(frozen=True)
class HeadScore:
    """What heads made of images that they were not fitted to.

    Attributes:
        losses: (N,) the log loss of each image.
        hits: (N,) 1 where the image is classified right, else 0.
        strength: of the penalty.
    """

    losses: Floats
    hits: Floats
    strength: float

    @property
    def log_loss(self) -> float:
        """The mean log loss."""
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        """The share of images classified right."""
        return float(self.hits.mean())


def score_head(activations: npt.ArrayLike, labels: Ints, num_classes: int, folds: Ints) -> HeadScore:
    """Score a head on activations (N, F), each image by a fit without the images of its fold.

    The head is ridge regression to the classes, one solution of linear equations per fold and strength, so that a
    thousand classes take as long as two. Its outputs, times one factor, are the logits. The strength and the factor,
    two numbers for all images, are those with the lowest log loss.

    Args:
        activations: (N, F), finite.
        labels: (N,) from 0 to K - 1.
        num_classes: K.
        folds: (N,) the fold of each image, at least two different ones.
    """
    inputs = _standardize(np.asarray(activations, np.float64))
    targets = np.eye(num_classes)[labels]  # (N, K)
    outputs = np.empty((len(STRENGTHS), *targets.shape))
    solve_without = _without_by_image if len(inputs) <= inputs.shape[1] else _without_by_number
    for held_out, predictions in solve_without(inputs, targets, folds):
        outputs[:, held_out] = predictions
    scores = [_score(logits, labels, strength) for logits, strength in zip(outputs, STRENGTHS, strict=True)]
    return min(scores, key=lambda score: score.log_loss)


def _standardize(activations: Floats) -> Floats:
    """Return activations (N, F) with mean 0 and variance 1, and a constant beside them, (N, F + 1)."""
    scale = activations.std(axis=0)
    scale[scale < 1e-6 * max(1.0, float(scale.max()))] = np.inf  # what is the same for all images says nothing
    constant = np.full((len(activations), 1), INTERCEPT)
    return np.hstack([(activations - activations.mean(axis=0)) / scale, constant])


def _without_by_image(inputs: Floats, targets: Floats, folds: Ints) -> Iterator[tuple[Bools, Floats]]:
    """Yield each fold, and what ridge regressions without it give for it: (strengths, M, K); an equation per image."""
    products = inputs @ inputs.T
    for held_out in (folds == fold for fold in np.unique(folds)):
        fitted = ~held_out
        solutions = _solve(products[np.ix_(fitted, fitted)], targets[fitted], int(fitted.sum()))
        yield held_out, products[np.ix_(held_out, fitted)] @ solutions


def _without_by_number(inputs: Floats, targets: Floats, folds: Ints) -> Iterator[tuple[Bools, Floats]]:
    """Yield the same, by an equation per number of an image."""
    products, sums = inputs.T @ inputs, inputs.T @ targets
    for held_out in (folds == fold for fold in np.unique(folds)):
        own = inputs[held_out]
        solutions = _solve(products - own.T @ own, sums - own.T @ targets[held_out], int((~held_out).sum()))
        yield held_out, own @ solutions


def _solve(products: Floats, right_side: Floats, images: int) -> Floats:
    """Return the solutions of the equations with the penalty of each strength, (strengths, …, K)."""
    solutions = []
    for strength in STRENGTHS:
        penalized = products.copy()
        penalized.flat[:: len(products) + 1] += images * strength
        solutions.append(solve(penalized, right_side, assume_a="pos", overwrite_a=True, check_finite=False))
    return np.stack(solutions)


def _score(outputs: Floats, labels: Ints, strength: float) -> HeadScore:
    """Score outputs (N, K) that are as sure as is best for them."""
    below_best = outputs - outputs.max(axis=1, keepdims=True)
    of_label = below_best[np.arange(len(labels)), labels]

    def log_losses(log_scale: float) -> Floats:
        scale = np.exp(log_scale)
        losses: Floats = np.log(np.exp(scale * below_best).sum(axis=1)) - scale * of_label
        return losses

    best = minimize_scalar(
        lambda scale: log_losses(scale).mean(), bounds=LOG_SCALES, method="bounded", options={"xatol": 0.01}
    )
    return HeadScore(log_losses(float(best.x)), (of_label == 0).astype(np.float64), strength)
