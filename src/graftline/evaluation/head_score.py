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


@dataclass(frozen=True)
class _Equations:
    """The linear equations of a ridge regression without a fold.

    Attributes:
        held_out: (N,) the images of the fold, M of them.
        products: (E, E) left side, without the penalty.
        right_side: (E, K).
        own: (M, E) what a solution is multiplied with to give the outputs of the fold.
    """

    held_out: Bools
    products: Floats
    right_side: Floats
    own: Floats

    def predict(self, strength: float) -> Floats:
        """Return what the regression with a penalty gives for the fold: (M, K)."""
        penalized = self.products.copy()
        penalized.flat[:: len(penalized) + 1] += int((~self.held_out).sum()) * strength
        solution = solve(penalized, self.right_side, assume_a="pos", overwrite_a=True, check_finite=False)
        outputs: Floats = self.own @ solution
        return outputs


def score_head(activations: npt.ArrayLike, labels: Ints, num_classes: int, folds: Ints) -> HeadScore:
    """Score a head on activations (N, F), each image by a fit without the images of its fold.

    The head is ridge regression to the classes, one solution of linear equations per fold and strength. Its outputs,
    times one factor, are the logits. The strength and the factor, two numbers for all images, are those with the lowest
    log loss.

    Args:
        activations: (N, F), finite.
        labels: (N,) from 0 to K - 1.
        num_classes: K.
        folds: (N,) the fold of each image, at least two different ones.
    """
    inputs = _standardize(np.asarray(activations, np.float64))
    targets = np.eye(num_classes)[labels]  # (N, K)
    fold_equations = _equations_by_image if len(inputs) <= inputs.shape[1] else _equations_by_number
    equations = list(fold_equations(inputs, targets, folds))
    best: HeadScore | None = None
    for strength in STRENGTHS:  # one at a time: the outputs of all are gigabytes where the classes are many
        outputs = np.empty_like(targets)
        for one in equations:
            outputs[one.held_out] = one.predict(strength)
        score = _score(outputs, labels, strength)
        best = score if best is None or score.log_loss < best.log_loss else best
    assert best is not None
    return best


def _standardize(activations: Floats) -> Floats:
    """Return activations (N, F) with mean 0 and variance 1, and a constant beside them, (N, F + 1)."""
    scale = activations.std(axis=0)
    scale[scale < 1e-6 * max(1.0, float(scale.max()))] = np.inf  # what is the same for all images says nothing
    constant = np.full((len(activations), 1), INTERCEPT)
    return np.hstack([(activations - activations.mean(axis=0)) / scale, constant])


def _equations_by_image(inputs: Floats, targets: Floats, folds: Ints) -> Iterator[_Equations]:
    """Yield the equations of each fold, one per image that is fitted."""
    products = inputs @ inputs.T
    for held_out in (folds == fold for fold in np.unique(folds)):
        fitted = ~held_out
        own = products[np.ix_(held_out, fitted)]
        yield _Equations(held_out, products[np.ix_(fitted, fitted)], targets[fitted], own)


def _equations_by_number(inputs: Floats, targets: Floats, folds: Ints) -> Iterator[_Equations]:
    """Yield the same, one per number of an image."""
    products, sums = inputs.T @ inputs, inputs.T @ targets
    for held_out in (folds == fold for fold in np.unique(folds)):
        own = inputs[held_out]
        yield _Equations(held_out, products - own.T @ own, sums - own.T @ targets[held_out], own)


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
