"""The table of a gate, in the terminal and in MLflow: guard, champion, challenger, difference, verdict."""

from collections.abc import Sequence

from graftline.console import print_table
from graftline.evaluation.gate_guards import Guard

COLUMNS = ("guard", "champion", "challenger", "difference", "verdict")


def gate_rows(guards: Sequence[Guard]) -> list[tuple[str, ...]]:
    """Return the rows of the guards that are told."""
    return [
        (
            guard.label or guard.name,
            guard.champion,
            guard.challenger,
            guard.difference,
            "holds" if guard.passed else "FAILS",
        )
        for guard in guards
        if guard.told
    ]


def print_gate(guards: Sequence[Guard], title: str) -> None:
    """Print a row for each guard."""
    print_table(title, COLUMNS, gate_rows(guards))


def gate_markdown(guards: Sequence[Guard]) -> str:
    """Return the table as Markdown."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *gate_rows(guards)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
