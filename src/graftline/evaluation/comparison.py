"""Which of several classifiers is better, by what they gave for the same images, and how sure that is.

The differences are paired: what makes an image hard for both falls out. Letters: N images, K classes, R resamples.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from graftline.errors import UserError
from graftline.evaluation.metrics import (
    HEADLINES,
    LONG_WORK,
    SHARES,
    Interval,
    percentile_interval,
    resampled_scores,
    widened,
)
from graftline.evaluation.notes import groups_in_words
from graftline.evaluation.paired import widened_difference
from graftline.evaluation.predictions import Predictions
from graftline.evaluation.significance import findable_difference, mcnemar, smallest_difference, two_sided
from graftline.evaluation.verdict import PairedTest, holm_note, judge, power_note
from graftline.words import join_names

# Those of a score table whose differences resampling can judge; the calibration error's resamples have a bias of their
# own (Kumar et al. 2019, arXiv 1909.10155, section 2).
Metric = Literal["accuracy", "accuracy_weighted", "balanced_accuracy", "f1_macro", "auroc", "log_loss", "brier"]
OF_PROBABILITIES = ("auroc", "log_loss", "brier")  # the other scores are of the class that is answered
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_NAMES = 8  # in one sentence


@dataclass(frozen=True)
class ScoredModel:
    """A classifier and how good it is.

    Attributes:
        name: as it was given.
        scores: by name, each with its 95 % interval.
    """

    name: str
    scores: Mapping[str, Interval]


@dataclass(frozen=True)
class PairedComparison(PairedTest, ScoredModel):
    """A classifier beside the reference.

    Attributes:
        differences: by name, how much more of each score it has than the reference, with the paired 95 % interval.
    """

    differences: Mapping[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """Several classifiers, each compared with the first.

    Attributes:
        metric: the score that decides.
        num_images: N.
        dataset: name of the data set.
        split: name of the split.
        split_digest: of its images and labels.
        reference: the first.
        rows: the others, in their order.
        num_groups: of the images, where any two are of one; these are drawn whole, if there are several.
        decision_note: how each model answers, in a sentence, where that differs and the score is of the answers.
    """

    metric: Metric
    num_images: int
    dataset: str
    split: str
    split_digest: str
    reference: ScoredModel
    rows: tuple[PairedComparison, ...]
    num_groups: int | None = None
    decision_note: str = ""

    def smallest_difference(self, row: PairedComparison) -> float | None:
        """Return the smallest difference in accuracy that these images could have shown for two that differ so often.

        None where none could: the two disagree about the right answer for too few images. Or it is not known, as images
        of one group are alike.
        """
        if self.num_groups not in (None, 1):
            return None
        return smallest_difference(self.num_images, row.won + row.lost, row.level)

    def findable_difference(self, row: PairedComparison) -> float | None:
        """Return the true difference in accuracy that as many images find four times in five; None: there is none."""
        return findable_difference(self.num_images, row.won + row.lost, row.level)

    @property
    def notes(self) -> list[str]:
        """What a reader must know before believing the verdicts, in sentences."""
        notes = [] if self.num_groups is None else [f"{groups_in_words(self.num_images, self.num_groups)}."]
        notes += [self.decision_note] if self.decision_note else []
        if self.metric == "accuracy" and self.num_groups in (None, 1):
            notes.append(power_note(self.num_images, [(row.won + row.lost, row.level) for row in self.rows]))
        return notes + holm_note(len(self.rows))


def compare(
    models: Mapping[str, Predictions],
    metric: Metric = "accuracy",
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare classifiers with the first of them.

    The interval of a difference is that of the percentiles of R resamples, the same for all classifiers. `judge` says
    which of them is better or worse.

    Args:
        models: by name, what two or more classifiers gave for the same images; classes may be in another order. That
            they are the ones that are compared was not decided by these images, or luck flatters the best. Each is
            looked up twice, and let go before the next but for the first: a mapping that reads files has two in memory.
        metric: the score that decides.
        resamples: R.
        seed: of the resampling.

    Raises:
        UserError: there is only one, their images or classes are not the same, or the images have no such score.
    """
    tested = _tested(models)
    reference, *others = [  # one after the other, as what each gave may fill much of the memory
        _Sampled(name, _in_order(models[name], tested), metric, resamples, seed) for name in models
    ]
    if metric not in reference.scores:
        raise UserError(f"These {len(tested.labels):,} images define no {HEADLINES[metric]}: compare another score.")
    p_values = [_p_value(metric, one, reference) for one in others]
    differences = [one.differences(reference) for one in others]
    tests = judge(metric, [one[metric] for one in differences], [one.discordant(reference) for one in others], p_values)
    rows = tuple(
        PairedComparison(name=model.name, scores=model.scores, differences=more, **vars(test))
        for model, more, test in zip(others, differences, tests, strict=True)
    )
    return Comparison(
        metric=metric,
        num_images=len(tested.labels),
        dataset=tested.dataset,
        split=tested.split,
        split_digest=tested.split_digest,
        reference=ScoredModel(reference.name, reference.scores),
        rows=rows,
        num_groups=tested.num_groups if tested.num_groups < len(tested.labels) else None,
        decision_note="" if metric in OF_PROBABILITIES else _decision_note([reference, *others]),
    )


def _decision_note(models: Sequence["_Sampled"]) -> str:
    """Say how models answer, given the probabilities, if not all do so alike; else nothing."""
    if len({(one.decision.thresholds, one.decision.costs) for one in models}) == 1:
        return ""
    answers = sorted((one.decision.in_words, one.name) for one in models)  # the most probable class last
    told = join_names([f"{name} answers {in_words}" for in_words, name in answers], MOST_NAMES)
    return f"The models do not answer alike: {told}. AUROC, log loss and Brier score compare the networks alone."


class _Sampled:
    """A classifier's scores, of its test images and of the resamples of them that all classifiers share."""

    def __init__(self, name: str, predictions: Predictions, metric: Metric, resamples: int, seed: int) -> None:
        self.name, self.decision, self.groups = name, predictions.decision, predictions.drawn_groups
        self.correct = predictions.predicted == predictions.labels
        auroc = metric == "auroc" or predictions.logits.size * resamples <= LONG_WORK
        values, spread = resampled_scores(predictions, resamples, seed, auroc=auroc)
        self.values = {one: float(values[one]) for one in get_args(Metric) if one in values}
        self.spread = {one: spread[one] for one in self.values}
        intervals = _intervals(self.values, self.spread)
        self.scores = {one: widened(one, interval, predictions) for one, interval in intervals.items()}

    @property
    def units(self) -> int:
        """How many images, or groups of them, are resampled."""
        return len(self.correct) if self.groups is None else int(self.groups.max()) + 1

    def differences(self, reference: "_Sampled") -> dict[str, Interval]:
        """Return how much more of each score it has, with the interval."""
        more = {one: value - reference.values[one] for one, value in self.values.items()}
        found = _intervals(more, {one: self.spread[one] - reference.spread[one] for one in more})
        accuracy = widened_difference(found["accuracy"], self.correct, reference.correct, self.groups)
        return {**found, "accuracy": accuracy}

    def discordant(self, reference: "_Sampled") -> tuple[int, int]:
        """Return for how many images only it is right, and for how many only the reference."""
        return int((self.correct & ~reference.correct).sum()), int((reference.correct & ~self.correct).sum())


def _intervals(values: Mapping[str, float], spread: Mapping[str, Floats]) -> dict[str, Interval]:
    defined = {name: value for name, value in values.items() if not math.isnan(value)}
    return {name: percentile_interval(np.asarray(value), spread[name]) for name, value in defined.items()}


def _p_value(metric: Metric, model: _Sampled, reference: _Sampled) -> float:
    """Return the p-value of no difference."""
    if metric == "accuracy" and model.groups is None:
        return mcnemar(*model.discordant(reference))
    # the bootstrap's standard error: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 12.4
    standard_error = float(np.nanstd(model.spread[metric] - reference.spread[metric], ddof=1))
    return two_sided(model.values[metric] - reference.values[metric], standard_error, model.units)


def _tested(models: Mapping[str, Predictions]) -> Predictions:
    """Return what the first model gave, with the group of each image: an old file has none, where another has.

    Raises:
        UserError: there is only one, another one was tested on other images, or does not know the same classes.
    """
    if len(models) < 2:
        raise UserError(
            f"A comparison needs two models, and there is only {', '.join(models) or 'none'}: name another."
        )
    first, *others = models
    reference = models[first]
    groups = reference.groups
    for name in others:
        other = models[name]
        _check(name, other, first, reference)
        if groups is None and other.groups is not None:
            groups = [other.groups[row] for row in _places(other, reference)[0].tolist()]
        del other  # before the next one is read
    return replace(reference, groups=groups)


def _check(name: str, other: Predictions, first: str, reference: Predictions) -> None:
    """Make sure that a model was tested on the images of the first, and knows the same classes."""
    if other.split_digest != reference.split_digest:
        raise UserError(
            f"{name} was tested on other images (digest {other.split_digest}) than {first} (digest "
            f"{reference.split_digest}), so that their scores cannot be compared: test both on the same images."
        )
    require_same_classes(name, other.class_names, first, reference.class_names)


def require_same_classes(name: str, class_names: Collection[str], first: str, first_names: Collection[str]) -> None:
    """Make sure that a model knows the same classes as the first, in whatever order.

    Raises:
        UserError: one of the two knows a class that the other does not.
    """
    if differing := sorted(set(class_names) ^ set(first_names)):
        raise UserError(
            f"{name} and {first} do not know the same classes ({', '.join(differing[:MOST_NAMES])}"
            f"{' and more' if len(differing) > MOST_NAMES else ''} only one of them does): compare those that do."
        )


def _places(predictions: Predictions, reference: Predictions) -> tuple[Ints, list[int]]:
    """Return where the images (N,) and the classes of the reference are in predictions."""
    columns = [predictions.class_names.index(one) for one in reference.class_names]
    labels = np.argsort(columns)[predictions.labels]  # the new number of each class
    rows = np.empty(len(labels), dtype=np.int64)
    rows[_by_content(reference.sha256, reference.labels)] = _by_content(predictions.sha256, labels)
    return rows, columns


def _in_order(predictions: Predictions, reference: Predictions) -> Predictions:
    """Return predictions with the images and classes in the reference's order, and its weights and groups."""
    rows, columns = _places(predictions, reference)
    logits, are_in_order = predictions.logits, columns == sorted(columns) and (rows == np.arange(len(rows))).all()
    return replace(
        predictions,
        paths=[predictions.paths[row] for row in rows],
        logits=logits if are_in_order else logits[rows][:, columns],
        labels=reference.labels,
        weights=reference.weights,
        sha256=[predictions.sha256[row] for row in rows],
        class_names=reference.class_names,
        decision=predictions.decision.reordered(columns),
        groups=reference.groups,
        refused=None if predictions.refused is None else predictions.refused[rows],
    )


def _by_content(sha256: Sequence[str], labels: Ints) -> Ints:
    """Return the order of images by their content and label; of copies, as they are."""
    order: Ints = np.lexsort((labels, np.asarray(sha256)))
    return order


def format_difference(metric: str, difference: Interval) -> str:
    """Write a difference with its interval: points of a per cent for shares of images, else three decimals or more.

    >>> format_difference("accuracy", Interval(0.0191, 0.0044, 0.0332))
    '+1.9 [+0.4, +3.3] points'
    >>> format_difference("log_loss", Interval(-0.012, -0.03, 0.004))
    '-0.012 [-0.030, +0.004]'
    >>> format_difference("log_loss", Interval(-0.0002, -0.0006, 0.0002))
    '-0.00020 [-0.00060, +0.00020]'
    """
    numbers = (difference.value, difference.low, difference.high)
    scale, digits, unit = (100, 1, " points") if metric in SHARES else (1, _decimals(numbers), "")
    value, low, high = (f"{scale * one + 0.0:+.{digits}f}" for one in numbers)
    return f"{value} [{low}, {high}]{unit}"


def _decimals(numbers: Sequence[float]) -> int:
    """Return how many decimals show two digits of the largest of some numbers, at least 3 and at most 6.

    >>> _decimals([0.02]), _decimals([0.0, -0.006]), _decimals([1e-9]), _decimals([0.0]), _decimals([float("nan")])
    (3, 4, 6, 3, 3)
    """
    largest = max(map(abs, numbers))
    return min(6, max(3, 1 - math.floor(math.log10(largest)))) if 0 < largest < 1 else 3


def format_p_value(p_value: float) -> str:
    """Write a p-value, not more exactly than it can be known.

    >>> format_p_value(0.0301), format_p_value(0.00004), format_p_value(1.0)
    ('0.030', '< 0.001', '1.000')
    """
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
