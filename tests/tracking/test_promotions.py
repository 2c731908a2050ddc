"""The champion and the ledger in a real MLflow: the first one wins, and what was interrupted is finished."""

import platform
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from deciding import aliases, decide, decision, register
from mlflow import MlflowClient
from mlflow_server import Server
from sqlalchemy import text

from graftline.errors import UserError
from graftline.tracking import promotions as module
from graftline.tracking.client import connect
from graftline.tracking.ledger import LedgerLine
from graftline.tracking.names import HOST, OUTPUT_DIRECTORY, SCHEDULER, USER
from graftline.tracking.promotions import OvertakenError, Promotions, author, experiment_name
from graftline.tracking.registry import RegisteredVersion, Registry
from graftline.tracking.tracking import Tracking, user_name


def at_once(*functions: Callable[[], object]) -> list[object]:
    """Call functions at the same moment and return what they returned or raised."""
    barrier, found = threading.Barrier(len(functions)), list[object]()

    def call(function: Callable[[], object]) -> None:
        barrier.wait()
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=call, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("kind", ["database", "server"])
def test_the_alias_follows_the_ledger(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if kind == "database":
        tracking: Tracking = request.getfixturevalue("tracking")
    else:
        server: Server = request.getfixturevalue("server")
        tracking = Tracking(uri=server.uri, system_metrics=False)
    name = f"pets-{tmp_path.name}"
    register(connect(tracking.uri), name, 4)
    pets = Promotions(tracking, name, tmp_path / "ledger")
    assert pets.read().champion is None
    pets.open()
    pets.set_challenger(1)
    decide(pets, "promoted", 1)
    assert aliases(pets) == {"champion": 1}
    decide(pets, "refused", 2)
    decide(pets, "promoted", 3)
    assert aliases(pets) == {"champion": 3, "previous": 1}
    decide(pets, "forced", 4)
    assert aliases(pets) == {"champion": 4, "previous": 3}
    decide(pets, "rolled back", 3)
    assert aliases(pets) == {"champion": 3, "previous": 1}
    decide(pets, "rolled back", 1)
    assert aliases(pets) == {"champion": 1}
    standing = pets.read()
    assert [line.decision.kind for line in standing.lines] == [
        "promoted",
        "refused",
        "promoted",
        "forced",
        "rolled back",
        "rolled back",
    ]
    assert standing.damage is None
    assert standing.interrupted is None
    assert standing.rollback_of(4) == standing.lines[4]
    assert standing.rollback_of(1) is None
    (copy,) = (tmp_path / "ledger").iterdir()
    assert copy.read_text().splitlines() == [line.text for line in standing.lines]


def test_of_two_who_write_the_same_line_one_wins_and_the_other_is_told(pets: Promotions) -> None:
    decide(pets, "promoted", 1)
    standing = pets.read_sound()
    made = [decision(pets, "promoted", version) for version in (2, 3)]
    found = at_once(*(lambda one=one: pets.append(standing, one) for one in made))
    assert sorted(type(one).__name__ for one in found) == ["LedgerLine", "OvertakenError"]
    (error,) = [one for one in found if isinstance(one, OvertakenError)]
    assert "Another decision on pets was faster (line 2 of the ledger)" in str(error)
    (line,) = [one for one in found if isinstance(one, LedgerLine)]
    assert pets.read().lines[1] == line


def test_a_ledger_that_two_make_at_once_is_one(pets: Promotions, client: MlflowClient) -> None:
    found = at_once(*[pets._create_ledger] * 3)
    assert len(set(map(str, found))) == 1, found
    names = [one.name for one in client.search_experiments() if "promotions" in one.name]
    assert names == ["pets promotions"]
    assert client.get_run(str(found[0])).info.status == "FINISHED"


def test_what_was_interrupted_before_the_alias_moved_is_finished(
    pets: Promotions, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(pets, "promoted", 1)
    line = pets.append(pets.read_sound(), decision(pets, "promoted", 2))
    assert aliases(pets) == {"champion": 1}, "the old champion stays until then"
    assert pets.read().interrupted == line
    standing = pets.read_sound()
    assert standing.aliases == {"champion": 2, "previous": 1}
    assert standing.interrupted is None
    told = capsys.readouterr().out
    assert "Line 2 of the ledger makes version 2 of pets champion. It was interrupted before the alias moved" in told
    pets.finish(line)
    assert pets.read() == standing, "doing it twice changes nothing"


def test_who_comes_late_does_not_undo_what_was_decided_since(pets: Promotions, client: MlflowClient) -> None:
    late = pets.append(pets.read_sound(), decision(pets, "promoted", 1))
    decide(pets, "promoted", 2)  # which finishes the other one first
    pets.finish(late)
    assert aliases(pets) == {"champion": 2, "previous": 1}
    later = pets.append(pets.read_sound(), decision(pets, "promoted", 3))
    pets.read_sound()
    client.set_registered_model_alias("pets", "champion", "4")
    pets.read_sound()
    pets.finish(later)
    assert aliases(pets)["champion"] == 4


def test_interrupted_between_the_two_aliases(pets: Promotions, client: MlflowClient) -> None:
    decide(pets, "promoted", 1)
    decide(pets, "promoted", 2)
    pets.append(pets.read_sound(), decision(pets, "promoted", 3))
    client.set_registered_model_alias("pets", "previous", "2")
    assert pets.read_sound().aliases == {"champion": 3, "previous": 2}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_promotion_between_two_questions_is_not_taken_for_a_hand(
    pets: Promotions, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """MLflow tells of aliases and of the ledger by two answers: between them another one may have promoted."""
    decide(pets, "promoted", 1)
    ask = Registry.versions

    def overtaken(self: Registry, name: str) -> tuple[RegisteredVersion, ...]:
        monkeypatch.setattr(Registry, "versions", ask)
        found = ask(self, name)
        decide(pets, "promoted", 2)
        return found if when == "after" else ask(self, name)

    monkeypatch.setattr(Registry, "versions", overtaken)
    standing = pets.read_sound()
    assert [line.decision.kind for line in standing.lines] == ["promoted", "promoted"]
    assert standing.aliases == {"champion": 2, "previous": 1}


def test_a_clock_that_was_moved_back_changes_nothing(pets: Promotions, monkeypatch: pytest.MonkeyPatch) -> None:
    decide(pets, "promoted", 1)
    monkeypatch.setattr(module, "now", lambda: "1999-01-01T00:00:00+00:00")
    decide(pets, "promoted", 2)
    standing = pets.read_sound()
    assert standing.champion == standing.decided == 2
    assert [line.decision.at[:4] for line in standing.lines][1:] == ["1999"]


def test_who_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCHEDULER, "dagster run 12")
    assert str(author()).startswith("dagster run 12 (")


def test_a_server_that_is_away_and_a_database_that_is_locked(
    pets: Promotions, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(pets, "promoted", 1)
    away = Promotions(replace(tracking, uri="http://127.0.0.1:9"), "pets")
    with pytest.raises(
        UserError, match=r"^The tracking server http://127\.0\.0\.1:9 does not answer \(connection refused"
    ):
        away.read()
    standing, made = pets.read_sound(), decision(pets, "promoted", 2)
    with closing(sqlite3.connect(tracking.uri.removeprefix("sqlite:///"))) as database:
        database.execute("BEGIN EXCLUSIVE")
        sooner = "mlflow.store.db.utils.sql.text"  # MLflow waits for 20 s at each question
        monkeypatch.setattr(sooner, lambda statement: text(statement.replace("20000", "200")))
        with pytest.raises(UserError, match=r"^The tracking database .* is locked by another process"):
            pets.append(standing, made)
    assert pets.read().lines == standing.lines
    assert aliases(pets) == {"champion": 1}


def test_decisions_that_were_killed_are_marked(pets: Promotions, client: MlflowClient, tmp_path: Path) -> None:
    """Whenever that was: also before anything lay in the output directory, or with another run's files in it."""
    start = partial(pets.tracking.start, experiment=experiment_name("pets"), tags={})
    with start(run_name="going on", directory=tmp_path / "going-on") as running:
        experiment = client.get_run(running.id).info.experiment_id
        tags = {HOST: platform.node(), OUTPUT_DIRECTORY: str(tmp_path / "none"), USER: user_name()}
        early, replaced = (
            client.create_run(experiment, tags={**tags, OUTPUT_DIRECTORY: str(directory)}).info.run_id
            for directory in (tmp_path / "none", tmp_path / "going-on")
        )
        elsewhere = client.create_run(experiment, tags={**tags, HOST: "elsewhere"}).info.run_id
        pets.end_dead_runs()
        states = [client.get_run(run_id).info.status for run_id in (early, replaced, elsewhere, running.id)]
    assert states == ["KILLED", "KILLED", "RUNNING", "RUNNING"]
