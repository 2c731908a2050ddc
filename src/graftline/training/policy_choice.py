"""Which transforms keep the label: the rule, and what came of it.

A head that was trained on plain images says how probable the true class of an image is, before and after a transform.
Letters: N images, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.special import log_softmax

from graftline.freezing.measurement import Difference, Floats

# A transform may cost a tenth of what the head knows. Of an image that turns into one of another class the head loses
# all, so at most one image in ten does; as a transform happens to half of the training images, at most one label in
# twenty becomes wrong by it, which training withstands (Rolnick et al. 2017, arXiv 1705.10694, section 3).
MARGIN = 0.1
# Where no image of n loses its label, up to 3 / n of all may with 95 % confidence (Hanley and Lippman-Hand 1983).
FEWEST_IMAGES = round(3 / MARGIN)
# Of a single class, which has few images, twice as much must be lost for certain; and of how many images at least.
CLASS_MARGIN, FEWEST_OF_CLASS = 2 * MARGIN, 5


@dataclass(frozen=True)
class CandidateResult:
    """What a transform does to the predictions of a head that was trained on plain images.

    Attributes:
        name: of the transform.
        kept: whether it is used.
        why: it is not, as a part of a sentence; empty where it is.
        images: N, of the validation split, on which it was tried.
        lost: share of what the head knows, beyond the classes' frequencies, that it does not know of the transformed
            images; None where nothing was computed.
        log_loss: how much more it is on transformed images.
        accuracy: likewise.
    """

    name: str
    kept: bool
    why: str = ""
    images: int = 0
    lost: Difference | None = None
    log_loss: Difference | None = None
    accuracy: Difference | None = None

    @property
    def is_open(self) -> bool:
        """Whether more images might show that it does no harm."""
        return self.lost is not None and self.lost.low < MARGIN <= self.lost.high


@dataclass(frozen=True)
class PolicyChoice:
    """Which candidates are used.

    Attributes:
        rows: a result for each candidate, in the order in which they happen.
        reason: why nothing is known of any of them, as a part of a sentence; empty where something is.
        seconds: that it took.
    """

    rows: tuple[CandidateResult, ...]
    reason: str = ""
    seconds: float = 0.0

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of the candidates that are used."""
        return tuple(row.name for row in self.rows if row.kept)

    @classmethod
    def nothing(cls, names: Sequence[str], reason: str) -> "PolicyChoice":
        """Return the choice of none of the candidates, of which nothing is known."""
        return cls(tuple(CandidateResult(name, kept=False) for name in names), reason)

    def sentence(self) -> str:
        """Return the choice in one sentence without a full stop.

        >>> lost = Difference(0.424, 0.271, 0.577)
        >>> rows = CandidateResult("mirror", kept=True), CandidateResult("crop", kept=False, why=_in_words(lost))
        >>> PolicyChoice(rows).sentence()
        'mirror; without crop (42 %, 27 to 58 %, of what the head knows is lost)'
        >>> PolicyChoice.nothing(["mirror"], "the validation split has only 2 images").sentence()
        'none, as the validation split has only 2 images'
        """
        if self.reason:
            return f"none, as {self.reason}"
        left_out = [f"{row.name} ({row.why})" for row in self.rows if not row.kept]
        kept = ", ".join(self.kept) or "none"
        return f"{kept}; without {', '.join(left_out)}" if left_out else kept

    def to_json(self) -> dict[str, Any]:
        """Return the choice as what JSON knows, for a resume and for further processes, which do not choose again."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "PolicyChoice":
        """Return the choice that ``to_json`` wrote."""
        measured = ("lost", "log_loss", "accuracy")
        rows = [
            CandidateResult(**{**row, **{name: Difference(**row[name]) for name in measured if row[name] is not None}})
            for row in content["rows"]
        ]
        return cls(**{**content, "rows": tuple(rows)})


@dataclass(frozen=True)
class HeadKnowledge:
    """What a head knows of plain images.

    Attributes:
        labels: (N,) int64.
        log_probabilities: (N, K).
        frequencies: (N,) of the true class among the training images: its probability without a look at the image.
    """

    labels: np.ndarray
    log_probabilities: Floats
    frequencies: Floats

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, frequencies: Floats) -> "HeadKnowledge":
        """Return the knowledge of a head that gives logits (N, K), where classes have these frequencies (K,)."""
        return cls(labels, log_softmax(logits.astype(np.float64), axis=1), frequencies[labels])

    @property
    def known(self) -> Difference:
        """How much more probable the true class is to the head than by the classes' frequencies alone."""
        return Difference.of(np.exp(_of_truth(self.log_probabilities, self.labels)), self.frequencies)

    def judge(self, name: str, logits: np.ndarray, rows: np.ndarray, class_names: Sequence[str]) -> CandidateResult:
        """Return what a transform does.

        It is kept where it is shown to do no harm, a test of non-inferiority: the whole interval of what is lost lies
        below ``MARGIN``. And no class may lose ``CLASS_MARGIN`` for certain.

        Args:
            name: of the transform.
            logits: (n, K) for transformed images.
            rows: (n,) which of the images these are.
            class_names: K.
        """
        labels, before = self.labels[rows], self.log_probabilities[rows]
        after = log_softmax(logits.astype(np.float64), axis=1)
        probable = np.exp(_of_truth(before, labels)) - np.exp(_of_truth(after, labels))
        losses = probable / self.known.value  # (n,) share of what is known that is lost with each image
        lost = _mean(losses)
        why = _in_words(lost) if lost.high >= MARGIN else _class_that_loses(losses, labels, class_names)
        right = [(one.argmax(axis=1) == labels).astype(np.float64) for one in (after, before)]
        log_loss = Difference.of(-_of_truth(after, labels), -_of_truth(before, labels))
        return CandidateResult(name, not why, why, len(losses), lost, log_loss, Difference.of(*right))


def within_margin(rows: Sequence[CandidateResult], chances: Mapping[str, float]) -> tuple[CandidateResult, ...]:
    """Leave out the costliest transforms until all that are used, together, lose less than ``MARGIN``.

    Args:
        rows: of all candidates.
        chances: name → how likely the transform happens to a training image.
    """
    kept = {row.name: row.lost.value for row in rows if row.kept and row.lost is not None}
    costs = {name: chances[name] * max(0.0, lost) for name, lost in kept.items()}  # a gain pays for no loss
    left_out = set[str]()
    while costs and sum(costs.values()) >= MARGIN:
        costs.pop(worst := max(costs, key=lambda name: costs[name]))
        left_out.add(worst)
    why = "with the others more than a tenth of what the head knows would be lost"
    return tuple(replace(row, kept=False, why=why) if row.name in left_out else row for row in rows)


def _class_that_loses(losses: Floats, labels: np.ndarray, class_names: Sequence[str]) -> str:
    """Return which class loses most, as a part of a sentence; empty where none does for certain."""
    worst, what = CLASS_MARGIN, ""
    for number in np.flatnonzero(np.bincount(labels) >= FEWEST_OF_CLASS).tolist():
        lost = _mean(losses[labels == number])
        if lost.low > worst:
            worst, what = lost.low, f"of class {class_names[number]} {_in_words(lost)}"
    return what


def _of_truth(values: Floats, labels: np.ndarray) -> Floats:
    """Return of values (N, K) those of the true classes, (N,)."""
    chosen: Floats = values[np.arange(len(labels)), labels]
    return chosen


def _mean(losses: Floats) -> Difference:
    """Return the mean of some losses (N,) with its interval."""
    return Difference.of(losses, np.zeros_like(losses))


def _in_words(lost: Difference) -> str:
    value, low, high = (f"{100 * number:z.0f}" for number in (lost.value, lost.low, lost.high))
    return f"{value} %, {low} to {high} %, of what the head knows is lost"
