"""The champion and the ledger in a real MLflow: the first one wins, and what was interrupted or changed is seen."""

import platform
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import Server
from sqlalchemy import text

from graftline.errors import UserError
from graftline.tracking import promotions as module
from graftline.tracking.client import connect
from graftline.tracking.ledger import MOST_OF_REASON, ChampionDecision, Kind, LedgerLine
from graftline.tracking.names import BUNDLE_DIGEST, HOST, OUTPUT_DIRECTORY, SCHEDULER
from graftline.tracking.promotions import MOST_LETTERS, OvertakenError, Promotions, author, experiment_name
from graftline.tracking.refused import find_refused
from graftline.tracking.registry import RegisteredVersion, Registry
from graftline.tracking.standing import bundle_digests
from graftline.tracking.tracking import Tracking


def model(client: MlflowClient, name: str, versions: int) -> None:
    client.create_registered_model(name)
    run = client.create_run("0").info
    for _ in range(versions):
        client.create_model_version(name, str(run.artifact_uri), run.run_id, await_creation_for=0)


def model_of_bundles(client: MlflowClient, made: str) -> None:
    """Register the model pets with four versions, whose bundles are of this making."""
    client.create_registered_model("pets")
    for number in range(1, 5):
        tags = {BUNDLE_DIGEST: f"{made} {number}"}
        client.create_model_version("pets", "file:///nowhere", tags=tags, await_creation_for=0)


@pytest.fixture
def pets(tracking: Tracking, client: MlflowClient, tmp_path: Path) -> Promotions:
    """Four versions on which nothing was decided, and a folder for copies."""
    model(client, "pets", 4)
    return Promotions(tracking, "pets", tmp_path / "ledger")


def decision(promotions: Promotions, kind: Kind, version: int) -> ChampionDecision:
    champion = promotions.read().champion
    after = champion if kind == "refused" else version
    return ChampionDecision(
        promotions.model, kind, version, champion, after, author(), module.now(), champion, ("Because.",)
    )


def decide(promotions: Promotions, kind: Kind, version: int) -> LedgerLine:
    """Write a decision and draw its consequences."""
    standing = promotions.read_sound()
    line = promotions.append(standing, decision(promotions, kind, version))
    promotions.finish(line)
    return line


def aliases(promotions: Promotions) -> dict[str, int]:
    return promotions.read().aliases


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
    model(connect(tracking.uri), name, 4)
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


@pytest.mark.parametrize("is_first", [True, False])
def test_interrupted_before_it_was_noted_and_then_moved_back_by_hand(
    pets: Promotions, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    """The next command that reads the ledger notes it, and from then on the alias is the user's."""
    if not is_first:
        decide(pets, "promoted", 1)
    before = pets.read().champion
    line = pets.append(pets.read_sound(), decision(pets, "promoted", 2))
    with monkeypatch.context() as patch:
        patch.setattr(Promotions, "_note", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pets.finish(line)
    standing = pets.read()
    assert (standing.champion, standing.unfinished, standing.interrupted) == (2, line, None)
    assert pets.read_sound().unfinished is None
    if before is None:
        client.delete_registered_model_alias("pets", "champion")
    else:
        client.set_registered_model_alias("pets", "champion", "1")
    for _ in range(2):
        standing = pets.read_sound()
        assert standing.champion == before
        assert [line.decision.kind for line in standing.lines[-2:]] == ["promoted", "moved by hand"]


def interrupted(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_moved_by_hand_to_a_third_version_while_a_decision_was_unfinished(
    pets: Promotions, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(pets, "promoted", 1)
    pets.append(pets.read_sound(), decision(pets, "promoted", 2))
    client.set_registered_model_alias("pets", "champion", "3")
    assert pets.read_sound().champion == 3
    client.set_registered_model_alias("pets", "champion", "1")  # where the unfinished one began
    standing = pets.read_sound()
    assert [line.decision.kind for line in standing.lines[2:]] == ["moved by hand", "moved by hand"]
    assert standing.champion == 1
    assert "It was interrupted" not in capsys.readouterr().out


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


def test_an_alias_that_was_moved_back_by_hand_stays_there(pets: Promotions, client: MlflowClient) -> None:
    decide(pets, "promoted", 1)
    decide(pets, "promoted", 2)
    client.set_registered_model_alias("pets", "champion", "1")
    standing = pets.read()
    assert standing.was_moved_by_hand
    assert standing.interrupted is None, "its line is done"
    standing = pets.read_sound()
    assert standing.champion == 1
    assert standing.lines[-1].decision.kind == "moved by hand"
    assert standing.lines[-1].decision.reasons == ("The alias 'champion' was set to version 1 by hand.",)
    assert not standing.was_moved_by_hand
    assert len(pets.read_sound().lines) == 3, "it is noted once"


def test_an_alias_that_is_older_than_the_ledger_or_gone(pets: Promotions, client: MlflowClient) -> None:
    client.set_registered_model_alias("pets", "champion", "2")
    assert pets.read_sound().lines[0].decision.after == 2
    client.delete_registered_model_alias("pets", "champion")
    standing = pets.read_sound()
    assert standing.lines[-1].decision.why == "The alias 'champion' was removed from version 2 by hand."
    assert standing.predecessors == [2], "with which the next one is compared"


def test_a_champion_that_was_deleted(pets: Promotions, client: MlflowClient) -> None:
    decide(pets, "promoted", 1)
    decide(pets, "promoted", 2)
    client.delete_model_version("pets", "2")
    standing = pets.read_sound()
    assert standing.lines[-1].decision.why == "Version 2 was deleted from the registry."
    assert (standing.champion, standing.predecessors) == (None, [1])
    with pytest.raises(UserError, match=r"^The registered model 'pets' has no version 2: there are 1, 3, 4\.$"):
        standing.version(2)


def test_a_version_that_was_deleted_before_its_alias_moved(
    pets: Promotions, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(pets, "promoted", 1)
    late = pets.append(pets.read_sound(), decision(pets, "promoted", 2))
    client.delete_model_version("pets", "2")
    with pytest.raises(UserError, match=r"^Version 2 of pets was deleted before it became champion \(line 2 "):
        pets.finish(late)
    pets.finish(late)
    standing = pets.read_sound()
    assert (standing.champion, standing.lines[-1].decision.why) == (1, "Version 2 was deleted from the registry.")
    assert "It was interrupted" not in capsys.readouterr().out
    decide(pets, "promoted", 3)
    assert aliases(pets) == {"champion": 3, "previous": 1}


def test_another_version_with_the_number_of_one_that_was_deleted_does_not_become_champion(
    tracking: Tracking, client: MlflowClient
) -> None:
    pets = Promotions(tracking, "pets")

    model_of_bundles(client, "old")
    digests = bundle_digests(pets.read().version(1), None)
    pets.append(pets.read_sound(), replace(decision(pets, "promoted", 1), digests=digests))
    client.delete_registered_model("pets")
    model_of_bundles(client, "new")
    assert pets.read_sound().champion is None


def test_a_model_made_anew_has_none_of_the_decisions_on_the_one_that_was_deleted(
    tracking: Tracking, client: MlflowClient
) -> None:
    """Its versions are counted from 1 again, and its ledger stays."""
    pets = Promotions(tracking, "pets")

    def decide_on(kind: Kind, number: int) -> None:
        standing = pets.read_sound()
        before = None if standing.champion is None else standing.version(standing.champion)
        digests = bundle_digests(standing.version(number), before)
        pets.finish(pets.append(standing, replace(decision(pets, kind, number), digests=digests)))

    model_of_bundles(client, "old")
    steps: list[tuple[Kind, int]] = [("promoted", 1), ("promoted", 2), ("rolled back", 1), ("refused", 3)]
    for kind, number in steps:
        decide_on(kind, number)
    standing = pets.read_sound()
    assert (standing.former_champions, standing.rollback_of(2)) == ({1, 2}, standing.lines[2])
    assert standing.lines_of(3) == [standing.lines[3]]
    assert [one.version for one in find_refused(tracking, "pets")] == [3]
    client.delete_registered_model("pets")
    model_of_bundles(client, "new")
    standing = pets.read_sound()
    assert standing.lines[-1].decision.why == "Version 1 was deleted from the registry."
    assert (standing.former_champions, standing.predecessors, standing.rollback_of(2)) == (set(), [], None)
    assert [standing.lines_of(number) for number in (1, 2, 3)] == [[]] * 3
    assert find_refused(tracking, "pets") == []
    decide_on("promoted", 2)
    assert pets.read_sound().former_champions == {2}


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


def test_a_clock_that_was_moved_back_changes_nothing(pets: Promotions, monkeypatch: pytest.MonkeyPatch) -> None:
    decide(pets, "promoted", 1)
    monkeypatch.setattr(module, "now", lambda: "1999-01-01T00:00:00+00:00")
    decide(pets, "promoted", 2)
    standing = pets.read_sound()
    assert standing.champion == standing.decided == 2
    assert [line.decision.at[:4] for line in standing.lines][1:] == ["1999"]


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
        tags = {HOST: platform.node(), OUTPUT_DIRECTORY: str(tmp_path / "none")}
        early, replaced = (
            client.create_run(experiment, tags={**tags, OUTPUT_DIRECTORY: str(directory)}).info.run_id
            for directory in (tmp_path / "none", tmp_path / "going-on")
        )
        elsewhere = client.create_run(experiment, tags={**tags, HOST: "elsewhere"}).info.run_id
        pets.end_dead_runs()
        states = [client.get_run(run_id).info.status for run_id in (early, replaced, elsewhere, running.id)]
    assert states == ["KILLED", "KILLED", "RUNNING", "RUNNING"]
