"""The guards of a gate that look at a model, not at its answers: what it costs, whether it is whole, what it knows."""

from dataclasses import dataclass
from typing import Literal

from graftline.evaluation.contestant import ModelFacts
from graftline.evaluation.gate_guards import Compared, Guard

MILLISECONDS, GOLDEN = "ms per image", "golden images"  # guards that another machine or moment may answer otherwise


@dataclass(frozen=True, kw_only=True)
class ModelLimits:
    """What a model may cost.

    Attributes:
        slower: times the champion's ms per image that it may take; None: any.
        milliseconds: ms per image that it may take on this machine; None: any.
        larger: times the champion's megabytes that it may have; None: any.
        megabytes: that it may have; None: any.
    """

    slower: float | None = 2.0
    milliseconds: float | None = None
    larger: float | None = 2.0
    megabytes: float | None = None

    def refuse_time(self, ours: float, theirs: float | None = None) -> bool:
        """Return whether a model takes too many ms per image, beside the champion's where there is one."""
        return not _cost(MILLISECONDS, ours, theirs, self.slower, self.milliseconds).passed


def model_guards(limits: ModelLimits, classes: Literal["grow", "same", "any"], compared: Compared) -> list[Guard]:
    """Return the guards on what is known of both models; the arguments are those of `Gate`."""
    ours, theirs = compared.challenger.facts, compared.champion.facts
    assert ours is not None, "a challenger is a model"
    guards = [
        _cost(
            MILLISECONDS,
            ours.milliseconds,
            None if theirs is None else theirs.milliseconds,
            limits.slower,
            limits.milliseconds,
        ),
        _cost(
            "megabytes", ours.megabytes, None if theirs is None else theirs.megabytes, limits.larger, limits.megabytes
        ),
        _golden(ours, theirs),
        _freeze(ours, theirs),
    ]
    if theirs is not None:
        guards += [_classes(compared, classes), _interface(ours, theirs)]
    return guards


def _cost(name: str, ours: float, theirs: float | None, times: float | None, most: float | None) -> Guard:
    """Return the guard on something that is measured, against the champion's and against a fixed limit."""
    reason = ""
    if theirs is not None and times is not None and ours > times * theirs:
        reason = f"It has {ours:.1f} {name}, more than {times:g} times the champion's {theirs:.1f}."
    if most is not None and ours > most:
        reason = f"It has {ours:.1f} {name}, more than {most:g}."
    return Guard(
        name=name,
        champion="" if theirs is None else f"{theirs:.1f}",
        challenger=f"{ours:.1f}",
        difference="" if theirs is None else f"{ours / theirs:.2f} x",
        passed=not reason,
        reason=reason,
        figures=() if theirs is None else (ours / theirs,),
    )


def _golden(ours: ModelFacts, theirs: ModelFacts | None) -> Guard:
    def told(facts: ModelFacts) -> str:
        return "as saved" if facts.golden_problem is None else "differ"

    return Guard(
        name=GOLDEN,
        champion="" if theirs is None else told(theirs),
        challenger=told(ours),
        difference="",
        passed=ours.golden_problem is None,
        reason=ours.golden_problem or "",
    )


def _freeze(ours: ModelFacts, theirs: ModelFacts | None) -> Guard:
    passed = ours.frozen is not None
    return Guard(
        name="freeze check",
        champion="" if theirs is None else theirs.frozen or "no record",
        challenger=ours.frozen or "no record",
        difference="",
        passed=passed,
        reason="" if passed else "Its training has no record that what was frozen stayed as it was: train it again.",
    )


def _classes(compared: Compared, rule: Literal["grow", "same", "any"]) -> Guard:
    ours, theirs = compared.challenger.class_names, compared.champion.class_names
    new = [name for name in ours if name not in theirs]
    gone = [name for name in theirs if name not in ours]
    reason = ""
    if gone and rule != "any":
        reason = f"It no longer knows {', '.join(gone)}, which whoever asks it may wait for."
    elif new and rule == "same":
        reason = f"It knows {', '.join(new)}, which the champion does not, and the class list is to stay the same."
    changes = [f"+ {name}" for name in new] + [f"- {name}" for name in gone]
    return Guard(
        name="classes",
        champion=f"{len(theirs)}",
        challenger=f"{len(ours)}",
        difference=", ".join(changes) or "the same",
        passed=not reason,
        reason=reason,
    )


def _interface(ours: ModelFacts, theirs: ModelFacts) -> Guard:
    lost = [name for name in theirs.output if name not in ours.output]
    reasons = []
    if ours.input != theirs.input:
        reasons.append(f"Its input is {ours.input}, the champion's is {theirs.input}.")
    if lost:
        reasons.append(f"It no longer answers {', '.join(lost)}, which the champion does.")
    return Guard(
        name="input and output",
        champion=theirs.input,
        challenger=ours.input,
        difference="the same" if not reasons and ours.output == theirs.output else "changed",
        passed=not reasons,
        reason=" ".join(reasons),
    )
