"""The table of a benchmark, in Markdown."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.accuracy.comparison import SLACK, Row, compare
from benchmarks.accuracy.picture import draw_picture
from benchmarks.accuracy.results import Result, Run, read_failures
from benchmarks.accuracy.runners import OURS, PEERS

START, END = "<!-- table: written by make bench-accuracy -->", "<!-- end of the table -->"
PICTURE = "![Test accuracy against seconds, a panel per set, a line per library](images/accuracy.png)"
HEAD = "| set | minutes | who | test accuracy | seconds | graftline is ahead by |\n|---|---|---|---|---|---|\n"


def markdown(results: Mapping[Run, Result], folder: Path) -> str:
    """Return the table, a line that counts where graftline is ahead, level or behind, and the runs that failed."""
    rows = compare(results, folder)
    measured = [row.ahead for row in rows if row.ahead is not None]
    above = sum(low > 0 for _, low, _ in measured)
    below = sum(high < 0 for _, _, high in measured)
    count = (
        f"Of {len(measured)} comparisons with a peer, graftline is above in {above}, below in {below}, and in "
        f"{len(measured) - above - below} the paired 95 % interval holds zero. "
    )
    late = sum(not row.is_in_time for row in rows)
    if late:
        count += f"Whoever took more than {SLACK:g} times the minutes is not compared ({late} of {len(rows)} rows). "
    return f"{count}{_origins(results)}\n\n{HEAD}" + "".join(map(_line, rows)) + _failed(folder)


def _origins(results: Mapping[Run, Result]) -> str:
    """Return with which code and on how many cores the results were made."""
    codes = dict.fromkeys(result.origin.commit for run, result in results.items() if run.peer in OURS)
    cores = " or ".join(str(number) for number in sorted({result.origin.cores for result in results.values()}))
    return (
        f"graftline is {' and '.join(codes)}. " if codes else ""
    ) + f"Measured on {cores} core{'' if cores == '1' else 's'}."


def _failed(folder: Path) -> str:
    """Return a sentence that names the runs without a result, or nothing."""
    names = [run.name for run in read_failures(folder)]
    return f"\nWithout a result, as they failed: {', '.join(names)}.\n" if names else ""


def write_page(results: Mapping[Run, Result], folder: Path, root: Path) -> None:
    """Replace the table in docs/accuracy.md and the picture beside it."""
    page = root / "docs" / "accuracy.md"
    head, _, rest = page.read_text(encoding="utf-8").partition(START)
    tail = rest.partition(END)[2]
    page.write_text(f"{head}{START}\n{PICTURE}\n\n{markdown(results, folder)}{END}{tail}", encoding="utf-8")
    draw_picture(results, root / "docs" / "images" / "accuracy.png")


def _line(row: Row) -> str:
    low, high = row.interval
    score = f"{row.accuracy:.1%} ({low:.1%} to {high:.1%})" + (f", {row.seeds} seeds" if row.seeds > 1 else "")
    ahead = "-" if row.is_in_time else "took too long"
    if row.ahead is not None:
        ahead = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in row.ahead))
    cells = (row.image_set, f"{row.minutes:g}", PEERS[row.peer].title, score, f"{row.seconds:,.0f}", ahead)
    return f"| {' | '.join(cells)} |\n"
