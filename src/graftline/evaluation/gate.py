"""The gate: whether a model may take the place of the champion, by what both give for the same test images.

Two kinds of burden. On the one score that decides, the challenger has to prove itself: as long as the images do not
show that it is good enough, it is not promoted. Of everything else (classes, slices, calibration, …) there are so many,
each of so few images, that no model could prove itself on all of them: a guard refuses what is proved to be worse, and
all guards together hardly ever refuse an equal model. docs/promotion.md has the rates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from graftline.errors import UserError
from graftline.evaluation.bootstrap import require_resampling
from graftline.evaluation.comparison import Metric
from graftline.evaluation.contestant import Contestant, TestImages, given_common_classes
from graftline.evaluation.gate_guards import MOST_NAMED, Compared, Guard, ScoreLimits, merged_reasons, score_guards
from graftline.evaluation.model_guards import GOLDEN, MILLISECONDS, ModelLimits, model_guards
from graftline.evaluation.primary import Rule, primary_guard
from graftline.evaluation.slices import FEWEST_IMAGES
from graftline.words import join_names


class NotComparableError(UserError):
    """There is nothing that two models could be compared on: a finding, which no other try changes."""


NO_FLIPS = pd.DataFrame(columns=["path", "label", "champion", "challenger", "probability"])


@dataclass(frozen=True, kw_only=True)
class Gate(ScoreLimits, ModelLimits):
    """What a challenger must show, and what it must not do (Hydra target of conf/gate/*.yaml).

    Attributes:
        metric: the score that decides.
        rule: ``better``: its interval leaves out that the challenger is no better. ``not_worse``: it is no worse by the
            score itself, and its interval leaves out that it is worse by more than the margin.
        margin: share of the champion's loss, or of what it lacks of 1, that counts as no worse.
        least_margin: of the metric, that counts as no worse however good the champion is: the less it errs, the more
            a difference scatters beside its loss.
        floor: of the metric, which every model must surely reach; None: no more than the champion's.
        classes: ``grow``: classes may be added; ``same``: none may; ``any``: they may be lost too.
        relabeled: share of the champion's test images that may be gone or have another label.
    """

    metric: Metric = "log_loss"
    rule: Rule = "not_worse"
    margin: float = 0.1
    least_margin: float = 0.02
    floor: float | None = None
    classes: Literal["grow", "same", "any"] = "grow"
    relabeled: float = 0.1

    def __post_init__(self) -> None:
        require_resampling("Gate", self.resamples, self.seed)
        for name in ("margin", "accuracy", "class_recall", "slice_accuracy", "calibration", "relabeled"):
            if not 0 <= getattr(self, name) <= 1:  # also catches NaN
                raise UserError(f"Gate.{name} is {getattr(self, name)}, it must be a share between 0 and 1.")
        if not 0 <= self.least_margin < math.inf:  # also catches NaN
            raise UserError(f"Gate.least_margin is {self.least_margin}, it must be at least 0.")
        for name in ("slower", "milliseconds", "larger", "megabytes"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:  # also catches NaN, which no model would be above
                raise UserError(f"Gate.{name} is {limit}, it must be above 0; null is no limit.")
        if self.floor is not None and not math.isfinite(self.floor):
            raise UserError(f"Gate.floor is {self.floor}, it must be a value of {self.metric}; null is none.")
        if self.flips is not None and not 0 <= self.flips <= 1:
            raise UserError(f"Gate.flips is {self.flips}, it must be a share between 0 and 1; null is no limit.")

    def check_weights(self, weights: npt.NDArray[np.floating] | None) -> None:
        """Make sure that test images have weights where the metric is weighted.

        Args:
            weights: of the images, (N,); None: they have none.

        Raises:
            UserError: the metric is weighted, and they have none.
        """
        if self.metric == "accuracy_weighted" and weights is None:
            raise UserError(
                "Gate.metric is accuracy_weighted, but the test images have no weights: take another metric, or give "
                "the table a column weight."
            )


@dataclass(frozen=True)
class GateResult:
    """What the gate found.

    Attributes:
        guards: all of them, those of people's table first.
        compared: on what, in a sentence.
        num_images: that were compared.
        flips: the images that the champion has right and the challenger wrong, the surest first: columns path, label,
            champion, challenger (their answers) and probability (of the challenger's).
    """

    guards: tuple[Guard, ...]
    compared: str
    num_images: int
    flips: pd.DataFrame

    @property
    def passed(self) -> bool:
        """Whether the challenger may be promoted."""
        return all(guard.passed for guard in self.guards)

    @property
    def is_final(self) -> bool:
        """Whether another machine or moment would find the same; not if only what depends on these has refused."""
        failing = {guard.name for guard in self.guards if not guard.passed}
        return not failing or bool(failing - {MILLISECONDS, GOLDEN})

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why not, in sentences."""
        return merged_reasons(self.guards)


def examine(
    gate: Gate,
    images: TestImages,
    challenger: Contestant,
    champion: Contestant,
    facts: Sequence[Guard] = (),
) -> GateResult:
    """Hold a challenger against the champion, or against the frequencies of the classes where it is the first model.

    Args:
        gate: what it must show.
        images: that both have classified.
        challenger: the new model.
        champion: the model of today, or `frequencies`.
        facts: guards on what the images do not tell, found elsewhere.

    Raises:
        NotComparableError: there are no images that both can be compared on.
        UserError: they do not define the metric.
    """
    compared = _compare(images, challenger, champion)
    deciding = (gate.metric, gate.rule, gate.margin, gate.least_margin, gate.floor, gate.resamples, gate.seed)
    guards = [primary_guard(*deciding, compared)]
    if champion.facts is not None:
        guards += score_guards(gate, compared)
    guards += model_guards(gate, gate.classes, compared)
    flips = NO_FLIPS if champion.facts is None else _flips(compared)
    return GateResult((*guards, *facts), _sentence(compared), int(compared.rows.sum()), flips)


def _flips(compared: Compared) -> pd.DataFrame:
    """Return the images that only the champion has right, the challenger's surest answers first."""
    rows = np.flatnonzero(compared.rows)[compared.champion_right & ~compared.challenger_right]
    images, challenger = compared.images, compared.challenger
    flips = pd.DataFrame(
        {
            "path": [images.paths[row] for row in rows],
            "label": images.labels[rows],
            "champion": compared.champion.answers[rows],
            "challenger": challenger.answers[rows],
            "probability": [
                float(challenger.probabilities[row, challenger.class_names.index(challenger.answers[row])])
                for row in rows
            ],
        }
    )
    return flips.sort_values("probability", ascending=False, kind="stable", ignore_index=True)


def _compare(images: TestImages, challenger: Contestant, champion: Contestant) -> Compared:
    """Return what can be compared: the images of classes that both know, and that the champion has not seen."""
    common = [name for name in challenger.class_names if name in champion.class_names]
    if len(common) < 2:
        number = "1 class" if common else "no classes"
        raise NotComparableError(
            f"{challenger.name} and {champion.name} have {number} in common, so that nothing can be "
            "compared: force the promotion with a reason, if it is meant to replace it."
        )
    rows = images.of_classes(common)
    if images.seen is not None:
        rows &= ~images.seen
    if not rows.any():
        raise NotComparableError(
            f"None of the {len(images.paths):,} test images can be compared on: {champion.name} was trained on all of "
            "those whose class it knows."
        )
    return Compared(
        images=images,
        challenger=challenger,
        champion=champion,
        rows=rows,
        common=tuple(common),
        challenger_given=given_common_classes(challenger, common, images, rows),
        champion_given=given_common_classes(champion, common, images, rows),
    )


def _sentence(compared: Compared) -> str:
    """Say what was compared with what, on which images."""
    images, common = compared.images, compared.common
    count, total = int(compared.rows.sum()), len(images.paths)
    of = f"all {total:,}" if count == total else f"{count:,} of {total:,}"
    parts = [f"{compared.challenger.name} and {compared.champion.name} on {of} test images of {images.dataset}"]
    new = [name for name in compared.challenger.class_names if name not in common]
    gone = [name for name in compared.champion.class_names if name not in common]
    if new:
        parts.append(
            f"{compared.champion.name} does not know {', '.join(new)}, so that both are compared on the "
            f"{len(common)} classes that both know"
        )
    if gone:
        parts.append(f"{compared.challenger.name} does not know {', '.join(gone)}")
    if images.seen is None and compared.champion.facts is not None:
        parts.append(f"which images trained {compared.champion.name} is not known, so that none are left out")
    elif images.seen is not None and (number := int(images.seen.sum())):
        parts.append(f"{number:,} images that trained {compared.champion.name} are left out")
    if (groups := compared.challenger_given.num_groups) == 1 < count:
        parts.append("all of these are of one group, so that nothing is known of another")
    elif groups < count:
        parts.append(f"these are of {groups:,} groups, which count as wholes")
    if compared.champion.facts is not None and (few := compared.too_small_classes):
        parts.append(_too_small(few))
    return "; ".join(parts) + "."


def _too_small(classes: Sequence[str]) -> str:
    """Say of which classes nobody knows whether they are worse.

    >>> _too_small(["crack"])
    'the recall of crack is not compared, with fewer than 10 images'
    >>> _too_small(["a", "b", "c", "d", "e"])
    'the recall of a, b, c and 2 more classes is not compared, with fewer than 10 images of each'
    """
    names = join_names(classes, MOST_NAMED) + (" classes" if len(classes) > MOST_NAMED else "")
    each = " of each" if len(classes) > 1 else ""
    return f"the recall of {names} is not compared, with fewer than {FEWEST_IMAGES} images{each}"
