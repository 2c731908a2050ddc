"""The history of a model in the terminal: who was champion, and every decision."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from graftline.console import print_table, say
from graftline.tracking.ledger import LedgerLine, Reign, reigns

MOST_ROWS = 20  # decisions that are printed, the newest


def print_history(model: str, lines: Sequence[LedgerLine]) -> None:
    """Print who was champion from when to when, and the decisions with their reasons."""
    print_table(
        f"Champions of {model}",
        ("version", "since", "until", "for", "line"),
        [_reign(reign) for reign in reigns(lines)],
    )
    say("")
    shown = lines[-MOST_ROWS:]
    left_out = f", the last {len(shown)} of {len(lines):,}" if len(shown) < len(lines) else ""
    say(f"Decisions{left_out}")
    for line in shown:
        decision = line.decision
        what = "" if decision.version is None else f" {decision.version}"
        say(f"{line.number:>4}  {when(decision.at)}  {decision.kind}{what}, by {decision.author}")
        say(f"      {decision.why}")


def _reign(reign: Reign) -> tuple[str, str, str, str, str]:
    since = reign.first.decision.at
    until = None if reign.last is None else reign.last.decision.at
    name = "none" if reign.version is None else str(reign.version)
    return name, when(since), "now" if until is None else when(until), _length(since, until), str(reign.first.number)


def when(at: str) -> str:
    """Write a moment to the minute, in local time."""
    return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M")


def _length(since: str, until: str | None) -> str:
    """Write how long something lasted; nothing where a clock was moved back.

    >>> _length("2026-11-28T11:24:10+00:00", "2026-11-30T12:24:10+00:00")
    '2.0 days'
    >>> _length("2026-11-28T11:24:10+00:00", "2026-11-28T10:24:10+00:00")
    ''
    """
    if until is None:
        return ""
    length = datetime.fromisoformat(until) - datetime.fromisoformat(since)
    if length < timedelta(0):
        return ""
    days, hours = length / timedelta(days=1), length / timedelta(hours=1)
    return f"{days:.1f} days" if days >= 2 else f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
