"""The guards of a gate that look at the answers for test images: each is a row of the table, with its own interval.

Letters: N images that are compared, R resamples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import numpy as np
import numpy.typing as npt

from graftline.evaluation.calibration import square_gaps
from graftline.evaluation.comparison import format_difference
from graftline.evaluation.contestant import Contestant, TestImages
from graftline.evaluation.metrics import format_score
from graftline.evaluation.paired import accuracy_difference, family_quantile, from_resamples
from graftline.evaluation.predictions import Predictions
from graftline.evaluation.significance import ALPHA
from graftline.evaluation.slices import FEWEST_IMAGES, cut
from graftline.words import join_names

ACCURACY, CLASS, SLICE = "accuracy", "class", "slice"  # kinds
MOST_TOLD, MOST_NAMED = 5, 3  # of classes or slices that fail: rows of the table, names in a sentence

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Guard:
    """One thing that a challenger must hold.

    Attributes:
        name: what is looked at.
        champion: how the champion is, for people; empty where it does not matter.
        challenger: how the challenger is.
        difference: between them, for people.
        passed: whether the guard lets it pass.
        reason: why not, a sentence; empty where it passes.
        figures: the difference and the ends of its interval; empty where there is none.
        told: whether it is a row of people's table; of many classes or slices, the worst is.
        kind: what it is one of several of: accuracy, class or slice.
        label: its name in the table, where that is another.
    """

    name: str
    champion: str
    challenger: str
    difference: str
    passed: bool
    reason: str = ""
    figures: tuple[float, ...] = ()
    told: bool = True
    kind: str = ""
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class ScoreLimits:
    """How much worse the answers for test images may be.

    Attributes:
        accuracy: how much of the accuracy may surely be lost.
        class_recall: of the recall of any class.
        slice_accuracy: of the accuracy on any slice of the images.
        calibration: how much larger the calibration error may surely be.
        flips: share of the images that may turn from right to wrong; None: any, they are listed.
        resamples: that give an interval.
        seed: of the resampling.
    """

    accuracy: float = 0.0
    class_recall: float = 0.05
    slice_accuracy: float = 0.05
    calibration: float = 0.02
    flips: float | None = None
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Compared:
    """A challenger and a champion on the images that both can be compared on.

    Attributes:
        images: all test images.
        challenger: on all of them.
        champion: likewise.
        rows: which of them are compared, N in number.
        common: the classes that both know.
        challenger_given: its predictions (N) where the class is known to be one of these.
        champion_given: likewise.
    """

    images: TestImages
    challenger: Contestant
    champion: Contestant
    rows: Bools
    common: tuple[str, ...]
    challenger_given: Predictions = field(repr=False)
    champion_given: Predictions = field(repr=False)

    @cached_property
    def labels(self) -> npt.NDArray[np.object_]:
        """(N,) names of classes."""
        return self.images.labels[self.rows]

    @cached_property
    def too_small_classes(self) -> list[str]:
        """Classes with so few images that no difference could be shown: no guard looks at them."""
        return [name for name in self.common if (self.labels == name).sum() < FEWEST_IMAGES]

    @cached_property
    def challenger_right(self) -> Bools:
        """(N,) whether the challenger answers rightly, as it would in production."""
        right: Bools = self.challenger.answers[self.rows] == self.labels
        return right

    @cached_property
    def champion_right(self) -> Bools:
        """(N,) whether the champion does."""
        right: Bools = self.champion.answers[self.rows] == self.labels
        return right


@dataclass(frozen=True)
class _Part:
    """Some of the images, and how much of the accuracy on them may surely be lost.

    ``short`` is the name without what a table has no room for.
    """

    kind: str
    name: str
    short: str
    rows: Bools
    margin: float


def score_guards(limits: ScoreLimits, compared: Compared) -> list[Guard]:
    """Return the guards on accuracy, classes, slices, calibration and flips.

    The accuracy has its own 95 % interval, as the score that decides has. The intervals of all the others hold at once,
    in the direction that speaks against the challenger, 95 times of 100.
    """
    parts = list(_parts(compared, limits.class_recall, limits.slice_accuracy))
    quantile = family_quantile(ALPHA, len(parts) + 1)
    whole = _Part(ACCURACY, "", "", np.ones(len(compared.labels), dtype=bool), limits.accuracy)
    guards = [replace(_part_guard(compared, whole, family_quantile(ALPHA / 2, 1)), label=ACCURACY)]
    for kind in (CLASS, SLICE):
        of_kind = [part for part in parts if part.kind == kind]
        guards += _worst_told([_part_guard(compared, part, quantile) for part in of_kind], of_kind)
    return [*guards, _calibration(compared, limits, quantile), _flips(compared, limits.flips)]


def _parts(compared: Compared, class_recall: float, slice_accuracy: float) -> Iterator[_Part]:
    for name in compared.common:
        if name not in compared.too_small_classes:
            yield _Part(CLASS, name, name, compared.labels == name, class_recall)
    if compared.images.columns is not None:
        columns = compared.images.columns[compared.rows].reset_index(drop=True)
        for part in cut(columns):
            if part.shows_others(compared.challenger_given.drawn_groups):
                short = f"{part.column} {part.value.split(' (')[0]}"
                yield _Part(SLICE, f"{part.column} {part.value}", short, part.rows, slice_accuracy)


def _part_guard(compared: Compared, part: _Part, quantile: float) -> Guard:
    ours, theirs = compared.challenger_right[part.rows], compared.champion_right[part.rows]
    groups = compared.challenger_given.drawn_groups
    difference = accuracy_difference(ours, theirs, quantile, None if groups is None else groups[part.rows])
    passed = difference.high >= -part.margin
    name = f"{part.kind} {part.name}".strip()
    what = "accuracy" if part.kind == ACCURACY else f"accuracy on {name}"
    more = f" by more than {100 * part.margin:g} points" if part.margin else ""
    lost = f"{-100 * difference.high:.1f} to {-100 * difference.low:.1f} points are lost on {len(ours):,} images"
    return Guard(
        name=name,
        champion=format_score(ACCURACY, theirs.mean()),
        challenger=format_score(ACCURACY, ours.mean()),
        difference=format_difference(ACCURACY, difference).removesuffix(" points"),
        passed=passed,
        reason="" if passed else f"The {what} is surely worse{more}: {lost}.",
        figures=(difference.value, difference.low, difference.high),
        kind=part.kind,
    )


def _worst_told(guards: list[Guard], parts: list[_Part]) -> list[Guard]:
    """Return the guards of a kind, the worst first; those that fail are told, or else the first one."""
    order = sorted(range(len(guards)), key=lambda place: (guards[place].passed, guards[place].figures[2]))
    marked = []
    for rank, place in enumerate(order):
        guard, part = guards[place], parts[place]
        told = rank == 0 or (not guard.passed and rank < MOST_TOLD)
        label = f"{part.kind} {part.short}".strip()
        if rank == 0 and guard.passed and len(guards) > 1:
            label = f"worst {part.kind} of {len(guards)}: {part.short}"
        marked.append(replace(guard, told=told, label=label))
    return marked


def merged_reasons(guards: Sequence[Guard]) -> tuple[str, ...]:
    """Return why guards fail, in a sentence each; of many classes or slices, in one for all."""
    reasons = []
    for kind, of_kind in groupby(guards, key=lambda guard: guard.kind):
        same = list(of_kind)
        failing = [guard for guard in same if not guard.passed]
        if kind in (CLASS, SLICE) and len(failing) > 1:
            names = join_names([guard.name.removeprefix(f"{kind} ") for guard in failing], MOST_NAMED)
            plural = "classes" if kind == CLASS else "slices"
            reasons.append(
                f"The accuracy is surely worse than it may be on {len(failing)} of {len(same)} {plural}: {names}."
            )
        else:
            reasons += [guard.reason for guard in failing]
    return tuple(reasons)


def _calibration(compared: Compared, limits: ScoreLimits, quantile: float) -> Guard:
    """Compare the calibration errors (Kumar et al. 2019, arXiv 1909.10155), of the same resamples."""
    errors, drawn = [], []
    for given in (compared.challenger_given, compared.champion_given):
        square, squares = square_gaps(
            given.probabilities, given.labels, limits.resamples, limits.seed, given.drawn_groups
        )
        errors.append(float(np.sqrt(max(0.0, square))))
        drawn.append(np.sqrt(np.maximum(0.0, squares)))
    difference = from_resamples(errors[0] - errors[1], drawn[0] - drawn[1], quantile)
    passed, told = difference.low <= limits.calibration, format_difference("ece", difference)
    return Guard(
        name="calibration error",
        champion=f"{errors[1]:.3f}",
        challenger=f"{errors[0]:.3f}",
        difference=told,
        passed=passed,
        reason="" if passed else f"The calibration error is surely larger by more than {limits.calibration:g}: {told}.",
        figures=(difference.value, difference.low, difference.high),
    )


def _flips(compared: Compared, most: float | None) -> Guard:
    """Count the images that turn from right to wrong (Yan et al. 2021, CVPR: negative flips)."""
    lost = int((compared.champion_right & ~compared.challenger_right).sum())
    won = int((compared.challenger_right & ~compared.champion_right).sum())
    share = lost / len(compared.labels)
    passed = most is None or share <= most
    return Guard(
        name="right, now wrong",
        champion="",
        challenger=f"{lost:,}",
        difference=f"{won:,} wrong, now right",
        passed=passed,
        reason=""
        if passed
        else f"{lost:,} images turn from right to wrong, {format_score(ACCURACY, share)}, "
        f"more than {format_score(ACCURACY, most or 0.0)}.",
        figures=(share,),
    )
