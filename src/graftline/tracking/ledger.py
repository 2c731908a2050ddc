"""The ledger of a model: every decision on its champion is a line that holds the hash of the line before.

Whoever changes, removes or inserts a line breaks the chain from there on, which ``find_break`` tells. The order is that
of the numbers; clocks are only noted.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from graftline.errors import UserError

FORMAT = 1  # of a line; raise it when an earlier graftline could not read it
START = "0" * 64  # what the first line holds in the place of a hash
MOST_OF_REASON = 1000  # characters of what a person gives, which a line has room for
MOST_WRITTEN = 2 * MOST_OF_REASON  # of these as JSON: a quote or line break takes two, another control character six

Kind = Literal["promoted", "refused", "forced", "rolled back", "moved by hand"]
MOVES: tuple[Kind, ...] = ("promoted", "forced", "rolled back")  # after which the alias is moved


@dataclass(frozen=True)
class Author:
    """Who decided.

    Attributes:
        user: name of the account.
        host: name of the machine.
        scheduler: what started the job, such as "cron", or "dagster run" with its id; None: a person.
    """

    user: str
    host: str
    scheduler: str | None = None

    def __str__(self) -> str:
        name = f"{self.user}@{self.host}"
        return name if self.scheduler is None else f"{self.scheduler} ({name})"


@dataclass(frozen=True)
class ChampionDecision:
    """What was decided, before it has its place in the ledger.

    Attributes:
        model: name of the registered model.
        kind: what became of it.
        version: that was decided on; None: an alias was removed by hand.
        before: the champion until then; None: there was none.
        after: the champion from then on.
        compared_with: the version that the gate compared it with; None: no model.
        reasons: sentences.
        forced: why the gate was overridden; None: it was not.
        digests: of the dataset version, its test split, both bundles, the gate (its settings and code), where it would
            say the same again, and the verdict's file.
        headline: the score that decided, with the difference and its interval, for people.
        figures: by guard, the difference and the ends of its interval.
        run_id: of the decision's run in MLflow; None: there is none.
        author: who decided.
        at: when, by the clock of that machine, in UTC.
    """

    model: str
    kind: Kind
    version: int | None
    before: int | None
    after: int | None
    author: Author
    at: str
    compared_with: int | None = None
    reasons: tuple[str, ...] = ()
    forced: str | None = None
    digests: Mapping[str, str] | None = None
    headline: str = ""
    figures: Mapping[str, Sequence[float]] | None = None
    run_id: str | None = None

    @property
    def why(self) -> str:
        """Why it was decided so, in a few words."""
        if self.kind == "promoted":
            return f"first model, {self.headline}" if self.compared_with is None else self.headline
        if self.kind == "forced":
            return f"forced: {self.forced}"
        if not self.reasons:
            return "no reason given"
        more = len(self.reasons) - 1
        return self.reasons[0] + (f" And {more} more." if more else "")

    def bundle_digest(self, version: int | None) -> str | None:
        """Return the digest of the bundle that a version had then, None where it is not noted."""
        of = "challenger" if version == self.version else "champion"
        return (self.digests or {}).get(of) if version in (self.version, self.compared_with, self.before) else None

    @property
    def is_final(self) -> bool:
        """Whether the same gate would say the same at another moment."""
        return "gate" in (self.digests or {})

    @property
    def moves(self) -> bool:
        """Whether the alias is moved in consequence."""
        return self.kind in MOVES


@dataclass(frozen=True)
class LedgerLine:
    """A decision in its place.

    Attributes:
        number: from 1.
        previous: hash of the line before.
        decision: what was decided.
        text: the line as it is kept, canonical JSON.
    """

    number: int
    previous: str
    decision: ChampionDecision
    text: str

    @property
    def sentence(self) -> str:
        """What was decided, for people."""
        decision = self.decision
        at = f"Line {self.number} of the ledger"
        if decision.kind == "refused":
            return f"{at} refuses version {decision.version} of {decision.model}."
        if decision.kind == "moved by hand":
            return f"{at} notes that the alias was moved by hand."
        back = " back" if decision.kind == "rolled back" else ""
        return f"{at} makes version {decision.version} of {decision.model} champion{back}."

    @property
    def hash(self) -> str:
        """SHA-256 of the line as it is kept, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def after(cls, line: "LedgerLine | None", decision: ChampionDecision) -> "LedgerLine":
        """Return the line that follows another one, or the first one."""
        number, previous = (1, START) if line is None else (line.number + 1, line.hash)
        content = {"format": FORMAT, "number": number, "previous": previous, **asdict(decision)}
        return cls.read(_written(content))  # as it will be read: lists in the place of tuples

    @classmethod
    def read(cls, text: str) -> "LedgerLine":
        """Return the line that was kept as ``text``.

        Raises:
            UserError: it is no line, or that of a later graftline.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            written = content.pop("format")
            if written > FORMAT:
                raise UserError("The ledger was written by a later graftline: update graftline.")
            number, previous = int(content.pop("number")), str(content.pop("previous"))
            content["author"] = Author(**content["author"])
            content["reasons"] = tuple(content["reasons"])
            decision = ChampionDecision(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"This is no line of a ledger: {text[:80]}") from error
        if decision.kind not in get_args(Kind):
            raise UserError(f"This is no line of a ledger: {text[:80]}")
        return cls(number, previous, decision, text)


def require_short(argument: str, reason: str | None) -> None:
    """Make sure that a line has room for a reason.

    Raises:
        UserError: it has not.
    """
    if reason is not None and len(reason) > MOST_OF_REASON:
        raise UserError(
            f"{argument} has {len(reason):,} characters, the ledger has room for {MOST_OF_REASON:,}: "
            "give a shorter one."
        )
    if reason is not None and len(_written(reason)) > MOST_WRITTEN + len('""'):
        raise UserError(
            f"{argument} has many characters that cannot be printed, which take six in the ledger: leave them out."
        )


def _written(content: object) -> str:
    r"""Return canonical JSON, as a line is kept.

    >>> _written({"b": 'a "word"', "a": "ж\x01"})
    '{"a":"ж\\u0001","b":"a \\"word\\""}'
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()  # bytes that are no text, as JSON has them


def find_break(lines: Sequence[LedgerLine]) -> str | None:
    """Return where a chain is broken, as a sentence; None if it holds.

    >>> find_break([])
    """
    before: LedgerLine | None = None
    for place, line in enumerate(lines, 1):
        if line.number != place:
            return f"Line {place} of the ledger is missing: the next one is line {line.number}."
        expected = START if before is None else before.hash
        if line.previous != expected:
            return (
                f"Line {place} of the ledger does not continue line {place - 1}: it holds the hash "
                f"{line.previous[:12]}…, not {expected[:12]}…, so that line {place - 1} was changed, or line {place}."
            )
        if before is not None and line.decision.before != before.decision.after:
            return f"Line {place} of the ledger does not begin with the champion that line {place - 1} ended with."
        before = line
    return None


@dataclass(frozen=True)
class Reign:
    """The time that a version was champion.

    Attributes:
        version: number; None: there was no champion.
        first: line that made it so.
        last: line that ended it; None: it still is.
    """

    version: int | None
    first: LedgerLine
    last: LedgerLine | None = None


def reigns(lines: Sequence[LedgerLine]) -> list[Reign]:
    """Return who was champion, one after the other."""
    found: list[Reign] = []
    for line in lines:
        if line.decision.after == line.decision.before:
            continue
        if found:
            found[-1] = Reign(found[-1].version, found[-1].first, line)
        found.append(Reign(line.decision.after, line))
    return found


def predecessors(lines: Sequence[LedgerLine]) -> list[int]:
    """Return the champions that a rollback goes back through, the one before the champion first.

    A rollback takes the version that it leaves off the pile, so that the next one goes back further.
    """
    pile: list[int] = []
    for line in lines:
        version = line.decision.after
        if version is None or version == line.decision.before:
            continue
        if line.decision.kind == "rolled back" and version in pile:
            del pile[pile.index(version) :]
        else:
            pile = [one for one in pile if one != version]
        pile.append(version)
    current = lines[-1].decision.after if lines else None
    return [one for one in reversed(pile) if one != current]
