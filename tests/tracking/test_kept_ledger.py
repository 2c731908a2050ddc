"""The lines of the ledger as MLflow and this machine keep them: whoever changes them is found out; all of them fit."""

import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from deciding import decide, decision
from mlflow import MlflowClient

from graftline.errors import UserError
from graftline.tracking.ledger import MOST_OF_REASON
from graftline.tracking.promotions import MOST_LETTERS, Promotions
from graftline.tracking.tracking import Tracking


def change(tracking: Tracking, statement: str, *values: str) -> None:
    """Do to the database what somebody does who has its password."""
    with closing(sqlite3.connect(tracking.uri.removeprefix("sqlite:///"))) as database:
        database.execute(statement, values)
        database.commit()


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_line_that_was_changed_in_the_database(pets: Promotions, tracking: Tracking, place: int) -> None:
    for version in (1, 2, 3):
        decide(pets, "promoted", version)
    text = pets.read().lines[place - 1].text
    changed = text.replace("Because.", "Of course")
    change(tracking, "UPDATE params SET value = ? WHERE key = ?", changed, f"{place:06}")
    standing = pets.read()
    damage = str(standing.damage)
    assert f"line {place}" in damage.lower(), "the last one too, which no other line follows"
    with pytest.raises(UserError, match=r"Nothing is decided on such a ledger\.$"):
        pets.read_sound()


def test_a_ledger_that_was_written_anew_or_cut_is_found_by_the_copy(
    pets: Promotions, tracking: Tracking, client: MlflowClient
) -> None:
    for version in (1, 2):
        decide(pets, "promoted", version)
    change(tracking, "DELETE FROM params WHERE key LIKE '000002%'")
    client.set_registered_model_alias("pets", "champion", "1")
    assert "Line 2 of the ledger is gone, which this machine has seen" in str(pets.read().damage)
    assert replace(pets, copies=None).read().damage is None


def test_what_is_decided_while_the_ledger_is_read_or_looked_at_is_no_loss(
    pets: Promotions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while `make history` draws it: the copy has a line by then that was not there when MLflow was asked."""
    decide(pets, "promoted", 1)
    find, answers = Promotions._find_ledger, list[object]()

    def find_and_decide(self: Promotions, client: MlflowClient) -> object:
        answers.append(find(self, client))
        if len(answers) == 2:  # the last answer that one reading needs
            monkeypatch.setattr(Promotions, "_find_ledger", find)
            decide(pets, "promoted", 2)
        return answers[-1]

    monkeypatch.setattr(Promotions, "_find_ledger", find_and_decide)
    standing = pets.read()
    assert (len(standing.lines), standing.damage) == (1, None)
    assert (len(pets.read().lines), pets.read().damage) == (2, None)


def test_a_ledger_that_was_deleted(pets: Promotions, client: MlflowClient) -> None:
    decide(pets, "promoted", 1)
    run = pets.read().ledger_run
    assert run is not None
    client.delete_run(run)
    with pytest.raises(
        UserError, match=rf"^The ledger of pets was deleted: restore it with `mlflow runs restore --run-id {run}`"
    ):
        pets.read()
    client.restore_run(run)
    experiment = client.get_experiment_by_name("pets promotions")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(
        UserError, match=r"^The experiment 'pets promotions' holds the ledger of pets, but it was deleted: "
    ):
        pets.read()


def test_a_line_that_is_too_long_for_mlflow_is_shortened(pets: Promotions) -> None:
    standing = pets.read_sound()
    long = replace(decision(pets, "refused", 1), reasons=tuple("x" * 900 for _ in range(20)))
    line = pets.append(standing, long)
    assert len(line.text) < MOST_LETTERS
    assert pets.read().lines == (line,)
    assert line.decision.reasons[-1] == "…"


@pytest.mark.parametrize("letter", ["ж", "\u2028", "\udcff", '"'])
def test_a_long_reason_of_any_letters_is_kept_whole(pets: Promotions, letter: str) -> None:
    text = letter * MOST_OF_REASON if letter != "\udcff" else letter
    line = pets.append(pets.read_sound(), replace(decision(pets, "forced", 1), forced=text))
    pets.finish(line)
    assert pets.read_sound().lines[0].decision.forced == text
    assert pets.read().damage is None, "the copy is the same"


def test_what_does_not_fit_is_refused_before_it_is_written(pets: Promotions) -> None:
    decide(pets, "promoted", 1)
    standing, many = pets.read_sound(), tuple("x" * 900 for _ in range(20))
    line = pets.append(standing, replace(decision(pets, "forced", 2), forced="ж" * 5300, reasons=many))
    assert line.decision.reasons == ("…",)
    standing = pets.read_sound()
    with pytest.raises(UserError, match=r"^The decision does not fit into a line of the ledger of pets \(6,\d+ char"):
        pets.append(standing, replace(decision(pets, "forced", 3), forced="ж" * 6000))
    assert pets.read().lines == standing.lines
