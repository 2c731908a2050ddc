"""Heads in closed form, in seconds: ridge regression to the classes, whose outputs times one factor are the logits.

Letters: N images, F numbers per image, K classes, E equations.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve
from scipy.optimize import minimize_scalar

from graftline.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Strengths of the penalty, relative to the number of images: the activations have unit variance, so that at 1 the mean
# direction is shrunk to half. The best is chosen by the folds.
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
INTERCEPT = 10.0  # the constant beside the activations, so large that its weight is hardly shrunk
MOST_LOGITS = 10_000_000  # that tell how sure is best; of more, those of images that are drawn
LOG_SCALES = (-2.0, 6.0)  # of the logits, natural logarithm: from hardly sure to as sure as can be


@dataclass(frozen=True)
class HeadScore:
    """What heads made of images that they were not fitted to.

    Attributes:
        losses: (N,) the log loss of each image, times its weight where images of a class have one.
        hits: (N,) 1 where the image is classified right, else 0, likewise.
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
class OutOfFold:
    """What heads give for images that they were not fitted to.

    Attributes:
        logits: (N, K), as sure as is best for their log loss.
        strength: of the penalty.
        sureness: the factor from a regression's outputs to logits.
    """

    logits: Floats
    strength: float
    sureness: float


@dataclass(frozen=True)
class Head:
    """A head that was fitted to activations.

    Attributes:
        mean: (F,) of the activations that it was fitted to.
        scale: (F,) their standard deviations; infinite for what is the same for all images.
        solution: (F + 1, K).
        strength: of the penalty.
        sureness: the factor from its outputs to logits.
    """

    mean: Floats
    scale: Floats
    solution: Floats
    strength: float
    sureness: float

    def inputs(self, activations: npt.ArrayLike) -> Floats:
        """Return what the solution is multiplied with, for activations (M, F): (M, F + 1)."""
        return _standardize(activations, self.mean, self.scale)

    def logits(self, activations: npt.ArrayLike) -> Floats:
        """Return what the head gives for activations (M, F): logits (M, K)."""
        logits: Floats = self.sureness * (self.inputs(activations) @ self.solution)
        return logits


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


def score_head(
    activations: npt.ArrayLike, labels: Ints, num_classes: int, folds: Ints, weights: Floats | None = None
) -> HeadScore:
    """Score a head on activations (N, F), each image by a fit without the images of its fold.

    Args:
        activations: (N, F).
        labels: (N,) from 0 to K - 1.
        num_classes: K.
        folds: (N,) the fold of each image, at least two different ones.
        weights: (K,) how many times as frequent each class is where the score is to hold, with mean 1 over the images;
            None: as frequent as here.

    Raises:
        UserError: some activations are infinite or no numbers.
    """
    given = out_of_fold(activations, labels, num_classes, folds)
    weights = np.ones(num_classes) if weights is None else weights
    logits = given.logits + np.log(weights)  # the prior that the fit has not seen (Saerens et al. 2002)
    hits = (logits.argmax(axis=1) == labels).astype(np.float64)
    return HeadScore(losses_of(logits, labels) * weights[labels], hits * weights[labels], given.strength)


def out_of_fold(activations: npt.ArrayLike, labels: Ints, num_classes: int, folds: Ints) -> OutOfFold:
    """Return what heads give for activations (N, F), each image by a fit without the images of its fold.

    A head is ridge regression to the classes, one solution of linear equations per fold and strength. Its outputs,
    times one factor, are the logits. The strength and the factor, two numbers for all images, are those with the lowest
    log loss.

    Args:
        activations: (N, F).
        labels: (N,) from 0 to K - 1.
        num_classes: K.
        folds: (N,) the fold of each image, at least two different ones.

    Raises:
        UserError: some activations are infinite or no numbers.
    """
    if broken := int((~np.isfinite(activations).all(axis=1)).sum()):
        raise UserError(
            f"The network's activations of {broken:,} of {len(labels):,} images are infinite or no numbers: its "
            "weights are damaged, or were made for images that are normalized in another way."
        )
    inputs = _standardize(activations, *_statistics(activations))
    targets = np.eye(num_classes)[labels]  # (N, K)
    fold_equations = _equations_by_image if len(inputs) <= inputs.shape[1] else _equations_by_number
    equations = list(fold_equations(inputs, targets, folds))
    best, lowest = None, np.inf
    for strength in STRENGTHS:  # one at a time: the outputs of all are gigabytes where the classes are many
        outputs = np.empty_like(targets)
        for one in equations:
            outputs[one.held_out] = one.predict(strength)
        sureness, loss = _find_sureness(outputs, labels)
        if loss < lowest:
            best, lowest = OutOfFold(sureness * outputs, strength, sureness), loss
    assert best is not None
    return best


def fit_head(activations: npt.ArrayLike, labels: Ints, num_classes: int, folds: Ints) -> Head:
    """Fit a head to activations (N, F); the strength of its penalty and its sureness are chosen by the folds.

    Args:
        activations: (N, F).
        labels: (N,) from 0 to K - 1.
        num_classes: K.
        folds: (N,) the fold of each image, at least two different ones.

    Raises:
        UserError: some activations are infinite or no numbers.
    """
    chosen = out_of_fold(activations, labels, num_classes, folds)
    mean, scale = _statistics(activations)
    inputs = _standardize(activations, mean, scale)
    solution = _solve_ridge(inputs, np.eye(num_classes)[labels], chosen.strength)
    return Head(mean, scale, solution, chosen.strength, chosen.sureness)


def losses_of(logits: Floats, labels: Ints) -> Floats:
    """Return the log loss of each image (N,), given logits (N, K)."""
    below_best = logits - logits.max(axis=1, keepdims=True)
    losses: Floats = np.log(np.exp(below_best).sum(axis=1)) - below_best[np.arange(len(labels)), labels]
    return losses


def _solve_ridge(inputs: Floats, targets: Floats, strength: float) -> Floats:
    """Return the solution (E, K) for inputs (N, E) and targets (N, K), by the smaller of two equivalent systems."""
    num_images, width = inputs.shape
    by_image = num_images <= width
    products = inputs @ inputs.T if by_image else inputs.T @ inputs
    products.flat[:: len(products) + 1] += num_images * strength
    right_side = targets if by_image else inputs.T @ targets
    solution: Floats = solve(products, right_side, assume_a="pos", overwrite_a=True, check_finite=False)
    return inputs.T @ solution if by_image else solution


def _statistics(activations: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return mean and scale (F,) of activations (N, F)."""
    values = np.asarray(activations, np.float64)
    scale = values.std(axis=0)
    scale[scale < 1e-6 * max(1.0, float(scale.max()))] = np.inf  # what is the same for all images says nothing
    return values.mean(axis=0), scale


def _standardize(activations: npt.ArrayLike, mean: Floats, scale: Floats) -> Floats:
    """Return activations (N, F) less the mean, in units of the scale, and a constant beside them, (N, F + 1)."""
    values = np.asarray(activations)
    inputs = np.empty((len(values), values.shape[1] + 1))  # filled in place: of many images each copy is a gigabyte
    inputs[:, :-1] = values
    inputs[:, :-1] -= mean
    inputs[:, :-1] /= scale
    inputs[:, -1] = INTERCEPT
    return inputs


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


def _find_sureness(outputs: Floats, labels: Ints) -> tuple[float, float]:
    """Return the factor from outputs (N, K) to logits with the lowest mean log loss, and that loss."""
    if outputs.size > MOST_LOGITS:
        rows = np.random.default_rng(0).permutation(len(outputs))[: max(1, MOST_LOGITS // outputs.shape[1])]
        outputs, labels = outputs[rows], labels[rows]
    below_best = outputs - outputs.max(axis=1, keepdims=True)
    of_label = below_best[np.arange(len(labels)), labels]

    def log_loss(log_scale: float) -> float:
        scale = np.exp(log_scale)
        return float((np.log(np.exp(scale * below_best).sum(axis=1)) - scale * of_label).mean())

    best = minimize_scalar(log_loss, bounds=LOG_SCALES, method="bounded", options={"xatol": 0.01})
    return float(np.exp(best.x)), float(best.fun)
