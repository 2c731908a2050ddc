"""What trying boundaries gave: a row for each boundary that was tried, and which one was chosen.

Letters: N images of the validation split.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.backbones.layers import HEAD
from graftline.freezing.plan import FreezePlan

Floats = npt.NDArray[np.float64]

NORMAL_QUANTILE = 1.96  # half the width of a 95 % interval in standard errors
NINE_IN_TEN = 1.28  # standard errors, one-sided
# To go deeper for nothing costs time, to stop at the head may cost many points: the evidence asked for is nine in ten,
# one-sided; and a gain that many images make certain must still be worth the time.
LEAST_GAIN = 0.05  # of the head's log loss


@dataclass(frozen=True)
class Difference:
    """The mean of what one boundary has more than another, image by image, and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Floats, reference: Floats) -> "Difference":
        """Return how much more ``values`` (N,) are than ``reference`` (N,) of the same images.

        The interval is the mean of the paired differences ± 1.96 of its standard errors (Miller 2024, "Adding Error
        Bars to Evals", arXiv 2411.00640, section 4.2): what makes an image hard for both falls out.

        >>> Difference.of(np.array([0.4, 0.6]), np.array([0.2, 0.5])).text()
        '+0.150 (+0.052 to +0.248)'
        """
        differences = values - reference
        error = differences.std(ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
        mean = float(differences.mean())
        return cls(mean, mean - NORMAL_QUANTILE * float(error), mean + NORMAL_QUANTILE * float(error))

    @classmethod
    def of_independent(cls, values: Floats, reference: Floats) -> "Difference":
        """Return how much more the mean of ``values`` (N,) is than that of ``reference`` (M,), of other images.

        The variances of the two means add up (Welch 1947), so that the interval is wider than that of the same images.

        >>> Difference.of_independent(np.array([0.4, 0.6]), np.array([0.2, 0.5, 0.2])).text()
        '+0.200 (-0.077 to +0.477)'
        """
        error = math.sqrt(sum(one.var(ddof=1) / len(one) if len(one) > 1 else math.inf for one in (values, reference)))
        mean = float(values.mean() - reference.mean())
        return cls(mean, mean - NORMAL_QUANTILE * error, mean + NORMAL_QUANTILE * error)

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.high < 0

    @property
    def is_likely_below_zero(self) -> bool:
        """Whether it is with a probability of nine in ten, one-sided."""
        error = (self.high - self.value) / NORMAL_QUANTILE
        return self.value + NINE_IN_TEN * error < 0

    def text(self) -> str:
        """Return it as people read it."""
        return f"{self.value:+z.3f} ({self.low:+z.3f} to {self.high:+z.3f})"


@dataclass(frozen=True, eq=False)
class BoundaryTrial:
    """What a short fit at one boundary gave.

    Attributes:
        boundary: the layer group from which on the network is trained; ``head``: the head alone.
        plan: of the fit.
        trained_parameters: how many there are.
        losses: (N,) the log loss of each validation image, calibrated.
        hits: (N,) 1 where the image is classified right, else 0.
        cached: whether the fit was on cached activations.
        pass_seconds: until the first step: cutting, and running the frozen trunk unless its activations were there.
        fit_seconds: of the epochs.
        images: how many training images the fit had.
        trained_images: how many images were passed forward and backward, those of its start included.
        folder: where its checkpoints lie, among those of all trials.
        start: the trial whose weights it began with; None: the network's own.
    """

    boundary: str
    plan: FreezePlan
    trained_parameters: int
    losses: Floats
    hits: Floats
    cached: bool
    pass_seconds: float
    fit_seconds: float
    images: int = 0
    trained_images: int = 0
    folder: str = ""
    start: "BoundaryTrial | None" = None

    @property
    def loss(self) -> float:
        """The mean of the losses."""
        return float(self.losses.mean())

    @property
    def sentence(self) -> str:
        """What is said when it is over."""
        how = f"{self.pass_seconds:.1f} s frozen pass" if self.cached else "live"
        return (
            f"{describe_boundary(self.boundary)}: {self.trained_parameters:,} parameters, "
            f"accuracy {self.hits.mean():.3f}, log loss {self.loss:.3f}; {how}, {self.fit_seconds:.1f} s fit"
        )

    def pays(self, head: "BoundaryTrial") -> bool:
        """Tell whether it is likely and notably better than the head alone."""
        difference = Difference.of(self.losses, head.losses)
        return difference.is_likely_below_zero and difference.value <= -LEAST_GAIN * head.loss

    def may_pay(self, head: "BoundaryTrial") -> bool:
        """Tell whether it is not worse than the head alone, and may well be notably better."""
        difference = Difference.of(self.losses, head.losses)
        return difference.value <= 0 and difference.low <= -LEAST_GAIN * head.loss

    def chain(self) -> "list[BoundaryTrial]":
        """Return the trials that led to its weights, in order, itself the last."""
        return [*([] if self.start is None else self.start.chain()), self]


@dataclass(frozen=True)
class BoundaryResult:
    """A boundary that was tried, in figures; the attributes that are not here are those of ``BoundaryTrial``.

    Attributes:
        frozen_groups: how many layer groups below the head are frozen.
        log_loss: the mean on the validation split, calibrated.
        accuracy: on the validation split.
        more_log_loss: than the boundary that was chosen, whose own is 0.
        more_accuracy: likewise.
    """

    boundary: str
    frozen_groups: int
    trained_parameters: int
    log_loss: float
    accuracy: float
    more_log_loss: Difference
    more_accuracy: Difference
    cached: bool
    pass_seconds: float
    fit_seconds: float
    images: int = 0
    trained_images: int = 0

    @classmethod
    def of(cls, trial: BoundaryTrial, chosen: BoundaryTrial) -> "BoundaryResult":
        """Compare a trial with the chosen one."""
        return cls(
            trial.boundary,
            trial.plan.frozen_groups,
            trial.trained_parameters,
            trial.loss,
            float(trial.hits.mean()),
            Difference.of(trial.losses, chosen.losses),
            Difference.of(trial.hits, chosen.hits),
            trial.cached,
            trial.pass_seconds,
            trial.fit_seconds,
            trial.images,
            trial.trained_images,
        )


@dataclass(frozen=True)
class DepthMeasurement:
    """What was tried and what was chosen.

    Attributes:
        rows: the boundaries in the order in which they were tried, the head first; at least one.
        chosen_row: which of the rows was chosen.
        num_images: N.
        stopped: why no more was tried, in words.
        in_folds: whether N are the images of the training split too, each judged by a fit without it.
    """

    rows: tuple[BoundaryResult, ...]
    chosen_row: int
    num_images: int
    stopped: str
    in_folds: bool = False

    @property
    def chosen(self) -> BoundaryResult:
        """The row of the chosen boundary."""
        return self.rows[self.chosen_row]

    @property
    def judged_by(self) -> str:
        """By which images, in words."""
        return f"{self.num_images:,} {'images, each by a fit without it' if self.in_folds else 'validation images'}"

    @property
    def sentence(self) -> str:
        """What was measured in words: the chosen boundary, and against it the others, as they were tried last."""
        chosen, of = self.chosen, "out-of-fold" if self.in_folds else "validation"
        own = f"{of} log loss {chosen.log_loss:.3f} with {describe_boundary(chosen.boundary)}"
        if len(self.rows) == 1:  # the head alone was fitted, nothing tried
            return f"{own} ({self.stopped})"
        last = {row.boundary: row for row in self.rows}
        others = [row for row in last.values() if row.boundary != chosen.boundary]
        return ", ".join(
            [
                "found by trials",
                own,
                *(f"{row.more_log_loss.text()} with {describe_boundary(row.boundary)}" for row in others),
            ]
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "DepthMeasurement":
        """Return the measurement whose ``dataclasses.asdict`` went through JSON."""
        rows = [
            BoundaryResult(**{**row, **{name: Difference(**row[name]) for name in ("more_log_loss", "more_accuracy")}})
            for row in content["rows"]
        ]
        return cls(**{**content, "rows": tuple(rows)})


def describe_boundary(boundary: str) -> str:
    """Return in words what is trained.

    >>> describe_boundary("head"), describe_boundary("blocks.6 + conv_head + bn2")
    ('the head alone', 'blocks.6 to the head')
    """
    return "the head alone" if boundary == HEAD else f"{boundary.partition(' + ')[0]} to the head"
