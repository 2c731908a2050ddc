"""The chain of decisions: whatever is changed in it is found, and who was champion follows from it."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftline.errors import UserError
from graftline.tracking.ledger import (
    START,
    Author,
    ChampionDecision,
    Kind,
    LedgerLine,
    find_break,
    predecessors,
    reigns,
)
from graftline.tracking.standing import find_loss


def chain(*steps: tuple[Kind, int | None, int | None]) -> list[LedgerLine]:
    """Return lines of what was decided on which version, and who was champion afterwards."""
    lines: list[LedgerLine] = []
    for kind, version, after in steps:
        decision = ChampionDecision(
            model="pets",
            kind=kind,
            version=version,
            before=lines[-1].decision.after if lines else None,
            after=after,
            author=Author("me", "here", "cron"),
            at=f"2026-01-{len(lines) + 1:02}T03:00:00+00:00",
            reasons=("Wörse.",) if kind == "refused" else (),
            digests={"test": "0123"},
            figures={"log loss": (0.1, -0.1, 0.3)},
        )
        lines.append(LedgerLine.after(lines[-1] if lines else None, decision))
    return lines


STORY: tuple[tuple[Kind, int | None, int | None], ...] = (
    ("promoted", 1, 1),
    ("refused", 2, 1),
    ("promoted", 3, 3),
    ("forced", 4, 4),
    ("rolled back", 3, 3),
)


def test_a_line_is_read_as_it_was_written() -> None:
    for line in chain(*STORY):
        again = LedgerLine.read(line.text)
        assert (again.number, again.previous, again.hash) == (line.number, line.previous, line.hash)
        assert again.decision.author == line.decision.author
        assert again.decision.reasons == line.decision.reasons
        assert LedgerLine.after(None, again.decision).text == LedgerLine.after(None, line.decision).text


def test_the_first_line_has_nothing_before_it_and_each_other_one_the_hash_of_the_one_before() -> None:
    lines = chain(*STORY)
    assert lines[0].previous == START
    assert [line.previous for line in lines[1:]] == [line.hash for line in lines[:-1]]
    assert find_break(lines) is None


@given(place=st.integers(0, 3), field=st.sampled_from(["at", "version", "forced", "model", "reasons"]))
def test_a_line_that_was_changed_breaks_the_chain(place: int, field: str) -> None:
    lines = chain(*STORY)
    content = json.loads(lines[place].text)
    content[field] = {"at": "2020", "version": 9, "forced": "so", "model": "others", "reasons": ["x"]}[field]
    lines[place] = LedgerLine.read(json.dumps(content, sort_keys=True, separators=(",", ":")))
    assert f"Line {place + 2} of the ledger does not continue line {place + 1}" in str(find_break(lines))


def test_lines_that_were_removed_inserted_or_swapped_break_the_chain() -> None:
    lines = chain(*STORY)
    assert "Line 2 of the ledger is missing: the next one is line 3." in str(find_break([lines[0], *lines[2:]]))
    assert find_break([*lines[:2], lines[1], *lines[2:]])
    assert find_break([lines[1], lines[0], *lines[2:]])
    other = LedgerLine.after(lines[1], replace(lines[2].decision, at="2027"))
    assert "does not continue line 3" in str(find_break([*lines[:2], other, *lines[3:]]))


def test_a_chain_whose_champions_do_not_follow_is_broken() -> None:
    lines = chain(*STORY[:2])
    wrong = LedgerLine.after(lines[-1], replace(lines[-1].decision, before=7))
    assert (
        find_break([*lines, wrong]) == "Line 3 of the ledger does not begin with the champion that line 2 ended with."
    )


def test_lines_that_a_machine_has_seen_are_missed() -> None:
    lines = chain(*STORY)
    seen = [line.text for line in lines]
    assert find_loss(seen[:3], lines, None) is None
    assert "Line 5 of the ledger is gone, which this machine has seen" in str(find_loss(seen, lines[:4], None))
    rewritten = chain(("promoted", 2, 2), *STORY[1:])
    assert find_break(rewritten) is None, "a chain that is written anew holds by itself"
    assert "Line 1 of the ledger is another now" in str(find_loss(seen, rewritten, None))


def test_who_was_champion() -> None:
    found = reigns(chain(*STORY))
    assert [(one.version, one.first.number, one.last and one.last.number) for one in found] == [
        (1, 1, 3),
        (3, 3, 4),
        (4, 4, 5),
        (3, 5, None),
    ]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((), []),
        (STORY[:1], []),
        (STORY[:3], [1]),
        (STORY[:4], [3, 1]),
        (STORY, [1]),  # a second rollback goes further back, and not to the one that was left
        ((*STORY, ("rolled back", 1, 1)), []),
        ((*STORY, ("promoted", 5, 5)), [3, 1]),
        ((*STORY, ("moved by hand", None, None)), [3, 1]),
        ((*STORY, ("moved by hand", 1, 1)), [3]),
    ],
)
def test_what_a_rollback_goes_back_to(
    steps: tuple[tuple[Kind, int | None, int | None], ...], expected: list[int]
) -> None:
    assert predecessors(chain(*steps)) == expected


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":1}', '{"format":2}', "null"])
def test_what_is_no_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^(This is no line of a ledger|The ledger was written by a later graftline)"):
        LedgerLine.read(text)
