"""How things stand with a model at one moment: its versions and aliases, and what its ledger says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from graftline.errors import UserError
from graftline.tracking.ledger import LedgerLine, find_break, predecessors
from graftline.tracking.names import CHAMPION
from graftline.tracking.registry import RegisteredVersion


@dataclass(frozen=True)
class Standing:
    """How things stand with a model: its versions and aliases, and what the ledger says, read at one moment.

    Attributes:
        model: name of the registered model.
        versions: all of them, the oldest first.
        aliases: number of the version by alias.
        lines: of the ledger.
        loss: what of the lines that this machine has seen before is not there any more, a sentence; None: nothing.
        done: by number of a line whose consequences are drawn, the hash that it had then.
        ended: numbers of the lines whose stage came to its end after that.
        ledger_run: that has the lines; None: nothing was decided yet.
    """

    model: str
    versions: tuple[RegisteredVersion, ...]
    aliases: dict[str, int]
    lines: tuple[LedgerLine, ...] = ()
    loss: str | None = None
    done: Mapping[int, str] = field(default_factory=dict)
    ended: frozenset[int] = frozenset()
    ledger_run: str | None = None

    @property
    def damage(self) -> str | None:
        """What is wrong with the lines, by themselves or by what this machine has seen; None if the chain holds."""
        if (broken := find_break(self.lines)) is not None:
            return broken
        for line in self.lines:
            if self.done.get(line.number, line.hash) != line.hash:
                return f"Line {line.number} of the ledger was changed after it was written."
        return self.loss

    def require_sound(self) -> None:
        """Make sure that nothing is wrong with the lines.

        Raises:
            UserError: something is.
        """
        if (damage := self.damage) is not None:
            raise UserError(f"{damage} Nothing is decided on such a ledger.")

    @property
    def champion(self) -> int | None:
        """The version that the alias points to."""
        return self.aliases.get(CHAMPION)

    @property
    def decided(self) -> int | None:
        """The champion by the ledger."""
        return self.lines[-1].decision.after if self.lines else None

    @cached_property
    def last_change(self) -> LedgerLine | None:
        """The line since which the champion is who it is; None: there is none."""
        changes = [line for line in self.lines if line.decision.after != line.decision.before]
        return changes[-1] if changes else None

    @property
    def unfinished(self) -> LedgerLine | None:
        """The decision on today's champion that is not noted as done: whoever wrote it did not come as far.

        Its alias was moved or was not; None too where it was moved by hand to a third version, or where the version was
        deleted since, also if another one has its number now.
        """
        line = self.last_change
        if line is None or not line.decision.moves or line.number in self.done:
            return None
        if line.decision.after not in self.former_champions:
            return None
        return line if self.champion in (line.decision.before, line.decision.after) else None

    @property
    def interrupted(self) -> LedgerLine | None:
        """The unfinished decision, if its alias is yet to be moved."""
        line = self.unfinished
        return line if line is not None and self.champion == line.decision.before else None

    @property
    def begun_rollback(self) -> LedgerLine | None:
        """The rollback that today's champion comes from, if its stage did not come to its end."""
        line = self.last_change
        is_begun = line is not None and line.decision.kind == "rolled back" and line.number not in self.ended
        return line if is_begun else None

    @property
    def was_moved_by_hand(self) -> bool:
        """Whether somebody else moved the alias, without the ledger."""
        return self.champion != self.decided and self.interrupted is None

    @property
    def by_hand(self) -> str:
        """What somebody else has done, where the alias was moved by hand, as a sentence."""
        if self.decided is not None and self.decided not in self.former_champions:
            return f"Version {self.decided} was deleted from the registry."
        if self.champion is None:
            return f"The alias '{CHAMPION}' was removed from version {self.decided} by hand."
        return f"The alias '{CHAMPION}' was set to version {self.champion} by hand."

    @property
    def newest(self) -> int:
        """The version that was registered last.

        Raises:
            UserError: there is none.
        """
        if not self.versions:
            raise UserError(f"The registered model '{self.model}' has no versions: train one.")
        return self.versions[-1].version

    @property
    def former_champions(self) -> set[int]:
        """All versions that have been champion by the ledger, today's too, and are still registered."""
        since = {line.decision.after: line for line in self.lines if line.decision.after != line.decision.before}
        numbers = {version.version for version in self.versions} & since.keys()
        return {number for number in numbers if self.is_about(since[number], number)}

    @property
    def predecessors(self) -> list[int]:
        """Former champions that a rollback goes back through, the last one first."""
        former = self.former_champions
        return [number for number in predecessors(self.lines) if number in former]

    def opponent(self, challenger: int | None = None) -> RegisteredVersion | None:
        """Return what a challenger is compared with: the champion, or else the last one that is still there.

        Args:
            challenger: number of its version, which is no opponent of itself; None: it is yet to be registered.
        """
        others = (number for number in self.predecessors if number != challenger)
        number = next(others, None) if self.champion is None else self.champion
        return None if number is None else self.version(number)

    def is_about(self, line: LedgerLine, number: int | None) -> bool:
        """Tell whether a line means the version that has a number now, and not a deleted one that had it before.

        The versions of a registered model that was deleted and made anew are counted from 1 again; its ledger stays.
        """
        noted = line.decision.bundle_digest(number)
        return noted is None or noted == self._bundle_digests.get(number, noted)

    def lines_of(self, number: int) -> list[LedgerLine]:
        """Return the lines that decide on the version that has a number now."""
        return [line for line in self.lines if line.decision.version == number and self.is_about(line, number)]

    @cached_property
    def _bundle_digests(self) -> dict[int | None, str]:
        return {version.version: version.bundle_digest for version in self.versions}

    def rollback_of(self, version: int) -> LedgerLine | None:
        """Return the line that rolled a version back, None if it never was or has become champion again."""
        for line in reversed(self.lines):
            if line.decision.after == version != line.decision.before:
                return None
            is_left = line.decision.kind == "rolled back" and line.decision.before == version
            if is_left and self.is_about(line, version):
                return line
        return None

    def version(self, number: int) -> RegisteredVersion:
        """Return a version.

        Raises:
            UserError: it is not registered, or was deleted.
        """
        for version in self.versions:
            if version.version == number:
                return version
        there = ", ".join(str(version.version) for version in self.versions) or "none"
        raise UserError(f"The registered model '{self.model}' has no version {number}: there are {there}.")


def bundle_digests(challenger: RegisteredVersion, champion: RegisteredVersion | None) -> dict[str, str]:
    """Return the digests of both bundles, as a decision notes them."""
    champions = {} if champion is None else {"champion": champion.bundle_digest}
    return {"challenger": challenger.bundle_digest, **champions}


def find_loss(seen: Sequence[str], lines: Sequence[LedgerLine], file: Path | None) -> str | None:
    """Return what of the lines that a machine has seen is not there any more, as a sentence; None: nothing.

    Args:
        seen: the lines as they were.
        lines: as they are.
        file: where what was seen is kept.
    """
    for place, text in enumerate(seen, 1):
        if place > len(lines) or lines[place - 1].text != text:
            what = "is gone" if place > len(lines) else "is another now"
            return (
                f"Line {place} of the ledger {what}, which this machine has seen and kept in {file}: "
                "if the tracking database was made anew, move that file away."
            )
    return None
