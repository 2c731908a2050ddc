"""Tables of members x crops: what each combination scores and costs, for the terminal and as CSV."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from graftline.augment.crops import CROP_SETS
from graftline.console import print_table, say
from graftline.evaluation.comparison import format_p_value
from graftline.evaluation.grid import GridRow
from graftline.evaluation.metrics import Interval, format_score
from graftline.evaluation.selection import Selection
from graftline.evaluation.verdict import ComparisonVerdict, PairedTest
from graftline.files import atomic_file

MOST_PRINTED = 24  # rows; of more, the first, the last and those of the frontier
MARKS: Mapping[ComparisonVerdict, str] = {"better": "+", "worse": "-", "no difference shown": ""}  # in few letters


def print_members(labels: Sequence[str], references: Sequence[str]) -> None:
    """Print which number is which member."""
    if len(labels) > 1:
        numbers = map(str, range(1, len(labels) + 1))
        print_table("Members", ("", "network", "from"), list(zip(numbers, labels, references, strict=True)))


def print_grid(rows: Sequence[GridRow], title: str) -> None:
    """Print score, gain over the first row, and time; marks say what is worth its time, and which gain is shown."""
    shown = rows
    if len(rows) > MOST_PRINTED:
        shown = [row for row in rows if row.is_on_frontier or row in (rows[0], rows[-1])]
    print_table(
        title,
        ("models", "crops", "accuracy, %", "gain, points", "", "log\nloss", "ms per\nimage", "time", ""),
        [
            (*cells[:4], _mark(row), *cells[6:], "*" if row.is_on_frontier else "")
            for row, cells in zip(shown, grid_cells(shown), strict=True)
        ],
    )
    say("* as accurate as nothing else that takes as little time.")
    if len(rows) > 1:
        say("+ better, - worse than the first row; without a mark, no difference is shown.")


def grid_cells(rows: Sequence[GridRow]) -> list[tuple[str, ...]]:
    """Return members, crops, accuracy, gain, its p-value and verdict, log loss, ms and time of each row."""
    return [_cells(row, rows[0]) for row in rows]


def sentence(row: GridRow, first: GridRow) -> str:
    """Say what a row gains over the first, for how much more time, and whether these images show it."""
    if row.test is None:
        return f"{describe(row)}: {format_score('accuracy', row.accuracy.value)} at {row.milliseconds:.1f} ms."
    gained = f"{points(row.accuracy_gain)} points for {_times(row, first)} the time"
    return f"{describe(row)}: {gained}, {row.test.verdict} (p {_p_value(row.test)})."


def describe(row: GridRow) -> str:
    """Name a row by how many members and crops it has."""
    members = "1 member" if len(row.members) == 1 else f"{len(row.members)} members"
    return f"{members} x {crops_in_words(row.crops)}"


def crops_in_words(crops: str) -> str:
    """Name a set of crops.

    >>> crops_in_words("1"), crops_in_words("10"), crops_in_words("d4")
    ('1 crop', '10 crops', 'd4')
    """
    return f"{crops} crop{'' if crops == '1' else 's'}" if crops.isdigit() else crops


def crops_harm(names: Sequence[str]) -> list[str]:
    """Say of each set of crops but the single one what it costs, and on which images it does harm.

    >>> crops_harm(["1", "5"])
    ['Crops 5 take up to 5 passes of the network, and do harm where what matters lies in the center alone.']
    """
    sets = {name: CROP_SETS[name] for name in names if name != "1"}
    return [
        f"Crops {name} take up to {one.count} passes of the network, and do harm {one.wrong}."
        for name, one in sets.items()
    ]


def points(gain: Interval) -> str:
    """Write a difference of accuracy in points, with its interval.

    >>> points(Interval(0.019, 0.004, 0.033))
    '+1.9 [0.4, 3.3]'
    """
    return f"{100 * gain.value:+.1f} [{100 * gain.low:.1f}, {100 * gain.high:.1f}]"


def write_grid_table(rows: Sequence[GridRow], file: Path) -> Path:
    """Write all rows as CSV."""
    table = pd.DataFrame(
        {
            "members": [_numbers(row.members) for row in rows],
            "crops": [row.crops for row in rows],
            **{
                f"{name}{end}": [getattr(getattr(row, name), field) for row in rows]
                for name in ("accuracy", "accuracy_gain", "log_loss", "log_loss_gain")
                for field, end in (("value", ""), ("low", "_low"), ("high", "_high"))
            },
            **{
                name: [getattr(row.test, name, None) for row in rows]
                for name in ("won", "lost", "p_value", "corrected_p_value", "verdict")
            },
            "ms_per_image": [row.milliseconds for row in rows],
            "on_frontier": [row.is_on_frontier for row in rows],
        }
    )
    with atomic_file(file) as temporary:
        table.to_csv(temporary, index=False)
    return file


def _cells(row: GridRow, first: GridRow) -> tuple[str, ...]:
    return (
        _numbers(row.members),
        row.crops,
        points(row.accuracy).lstrip("+"),
        "" if row is first else points(row.accuracy_gain),
        "" if row.test is None else format_p_value(row.test.corrected_p_value),
        "" if row.test is None else row.test.verdict,
        format_score("log_loss", row.log_loss.value),
        f"{row.milliseconds:.1f}",
        _times(row, first),
    )


def _mark(row: GridRow) -> str:
    """Return the mark of a row's verdict."""
    return "" if row.test is None else MARKS[row.test.verdict]


def _p_value(test: PairedTest) -> str:
    """Write the p-value after the letter p: an equals sign, unless it is too small to tell."""
    written = format_p_value(test.corrected_p_value)
    return written if written.startswith("<") else f"= {written}"


def _numbers(members: Sequence[int]) -> str:
    """Name the members by their numbers.

    >>> [_numbers(members) for members in [(1,), (0, 1), (0, 1, 2, 3)]]
    ['2', '1+2', '1-4']
    """
    if len(members) > 2 and members == tuple(range(members[0], members[-1] + 1)):
        return f"{members[0] + 1}-{members[-1] + 1}"
    return "+".join(str(number + 1) for number in members)


def _times(row: GridRow, first: GridRow) -> str:
    ratio = row.milliseconds / first.milliseconds
    return f"{ratio:.0f}x" if ratio >= 9.5 else f"{ratio:.1f}x"


def _without_shared_folders(references: Sequence[str]) -> list[str]:
    """Return references without the folders that all lie in, but the last of these, for a narrow terminal.

    >>> _without_shared_folders(["/srv/run/members/1", "/srv/run/members/2"])
    ['members/1', 'members/2']
    >>> _without_shared_folders(["/srv/run", "models:/elpv/1"])
    ['/srv/run', 'models:/elpv/1']
    """
    parts = [reference.split("/") for reference in references]
    if len(parts) == 1 or any(one[0] for one in parts):
        return list(references)
    shared = len([*itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))])
    return ["/".join(one[shared - 1 :]) for one in parts]


def print_selection(
    labels: Sequence[str], references: Sequence[str], selection: Selection, times: Sequence[float], crops: str
) -> None:
    """Print each member's validation log loss and share, and that of all together."""
    references = _without_shared_folders(references)
    rows = [
        (str(number + 1), label, reference, f"{loss:.3f}", f"{time:.1f}", f"{100 * share:.0f} %")
        for number, (label, reference, loss, time, share) in enumerate(
            zip(labels, references, selection.alone, times, selection.shares, strict=True)
        )
    ]
    spent = sum(times[number] for number in selection.chosen)
    rows.append(("", "together", "", f"{selection.loss:.3f}", f"{spent:.1f}", "100 %"))
    print_table(f"Validation images, {crops}", ("", "network", "from", "log\nloss", "ms per\nimage", "share"), rows)
