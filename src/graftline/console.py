"""Print to the terminal: lines, tables, progress bars and what the library logs."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from rich.cells import cell_len
from rich.console import Console, NewLine
from rich.control import Control
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

T = TypeVar("T")
WIDEST_NUMBER = 36  # characters with its interval and unit; what is wider is text that begins with a digit
Advance: TypeAlias = Callable[[int], None]
"""Moves a progress bar on by the number of items just done."""


class WorkReport(NamedTuple):
    """What a process is at."""

    work: str  # in words
    done: int  # of its items
    total: int
    best: str = ""  # the best score so far, in words; empty: not known


_log_files: list[Path] = []  # where what is printed is kept: in the last one
_listeners: list[Callable[[WorkReport], None]] = []  # the last one is told what this process is at


class LoggedConsole(Console):
    """A console whose lines and tables go to the log file, too; a bar is for the terminal alone."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print to the log file, which is up to date should this process be killed, and to the terminal.

        A terminal that takes nothing, as a file on a full disk, ends nothing; a pipe that nobody reads any more does.
        """
        is_bar = any(isinstance(one, Control | NewLine) for one in objects)  # each frame of it, and its end
        if _log_files and not is_bar and not self.quiet:
            _print_to(_log_files[-1], self.width, *objects, **options)
        try:
            super().print(*objects, **options)  # which ends the process where a pipe is closed
        except OSError:
            self._buffer.clear()  # else it would be printed once more


def _print_to(file: Path, width: int, *objects: Any, **options: Any) -> None:
    with (
        suppress(OSError),  # the terminal has it, disk full or not
        file.open("a", encoding="utf-8", errors="backslashreplace") as log,
    ):
        plain = Console(
            file=log, width=width, highlight=False, color_system=None, force_terminal=False, force_jupyter=False
        )
        plain.print(*objects, **options)


_in_notebook = "ipykernel" in sys.modules  # it says that it is a terminal, but does not move the cursor back
console = LoggedConsole(
    highlight=False,
    force_jupyter=False,  # one text, not an output of its own for each line
    force_terminal=False if _in_notebook else None,
)


def say(text: str) -> None:
    """Print one line as it is, without markup."""
    console.print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print one line as a warning."""
    console.print(f"! {text}", style="yellow", markup=False, soft_wrap=True)


@contextmanager
def logged(file: Path) -> Iterator[None]:
    """Append what is printed during the block to a file, except for what an inner block keeps in a file of its own."""
    _log_files.append(file)
    try:
        yield
    finally:
        _log_files.pop()


@contextmanager
def reported(listener: Callable[[WorkReport], None]) -> Iterator[None]:
    """Tell a listener during the block what this process is at."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()


def report_work(report: WorkReport) -> None:
    """Tell whoever listens what this process is at."""
    for listener in _listeners[-1:]:
        listener(report)


@contextmanager
def progress(description: str, total: int) -> Iterator[Progress]:
    """Show a progress bar with count and time left while the block runs; yields it with its one task (id 0) started."""
    if not console.is_terminal:  # a log file gets a line, not a bar
        say(f"{description}: {total:,}")
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        bar.add_task(description, total=total)
        yield bar


@contextmanager
def counted(description: str, total: int) -> Iterator[Advance]:
    """Show a progress bar while the block runs, and report the work; yields what moves it on."""
    with progress(description, total) as bar:

        def advance(number: int) -> None:
            bar.advance(bar.task_ids[0], number)
            report_work(WorkReport(description, int(bar.tasks[0].completed), total))

        advance(0)
        yield advance


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield ``items`` and show how many have been taken."""
    with counted(description, total) as advance:
        for item in items:
            yield item
            advance(1)


def format_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a small table as text, for a log; the first column is left-aligned, the others right-aligned.

    >>> print(format_table("pets", ("images", "train"), [("cats", "1,081"), ("all", "1,574")]))
    pets
    images  train
    cats    1,081
    all     1,574
    """
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    text = [title]
    for first, *others in lines:
        cells = (" " * (width - cell_len(cell)) + cell for cell, width in zip(others, widths[1:], strict=True))
        text.append("  ".join([first + " " * (widths[0] - cell_len(first)), *cells]))
    return "\n".join(text)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a small table; the first column is left-aligned, the others right-aligned, and no number is cut short.

    A column of numbers is as wide as its numbers and its title, which may have line breaks; text gives way.
    """
    rows = list(rows)
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        cells = [row[number] for row in rows if row[number]]
        is_numbers = number > 0 and all(_is_number(cell) for cell in cells)
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=is_numbers, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as it is: a class may be called [red]
    console.print(table)


def _is_number(cell: str) -> bool:
    return len(cell) <= WIDEST_NUMBER and cell.lstrip("+-")[:1].isdigit()


def print_facts(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """Print a title and a line for each fact; lines are not broken, so that a path can be copied."""
    facts = list(facts)
    width = max((len(name) for name, _ in facts), default=0)
    console.print(title, style="bold", markup=False)
    for name, text in facts:
        say(f"{name:<{width}}  {text}")


class ConsoleHandler(logging.Handler):
    """Print what the library logs: information with `say`, warnings with `warn`.

    Args:
        reword: translates each message, as to the keys of the command line.
    """

    def __init__(self, reword: Callable[[str], str] = str) -> None:
        super().__init__(logging.INFO)
        self.reword = reword

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        text = self.reword(record.getMessage())
        if record.levelno >= logging.WARNING:
            warn(text)
        else:
            say(text)


def reworded(text: str) -> str:
    """Return a sentence of the library in the words of whoever reads the log now; see `show_log`."""
    handlers = logging.getLogger("graftline").handlers
    return next((handler.reword(text) for handler in handlers if isinstance(handler, ConsoleHandler)), text)


def show_log(reword: Callable[[str], str] = str) -> None:
    """Show what ``graftline`` logs in the terminal; a second call replaces the first one's ``reword``."""
    logger = logging.getLogger("graftline")
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, ConsoleHandler)]
    logger.addHandler(ConsoleHandler(reword))
    logger.setLevel(logging.INFO)
    logger.propagate = False
