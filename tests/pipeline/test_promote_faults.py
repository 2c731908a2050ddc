"""Promote and rollback where something fails: what becomes of a killed one, and of one that MLflow leaves alone."""

import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from dusk import QUICK, aliases, crown, decisions, promote, run
from dying import die_at
from full_disk import files_up_to
from mlflow import MlflowClient
from mlflow_server import Server
from sqlalchemy import text
from warm_process import WarmProcess
from workplace import Workplace

from graftline.errors import UserError
from graftline.files import write_json
from graftline.pipeline.__main__ import main
from graftline.pipeline.promotion.examination import Examination
from graftline.tracking import run as run_module
from graftline.tracking.client import connect
from graftline.tracking.ledger import find_break
from graftline.tracking.promotions import Promotions
from graftline.tracking.tracking import Tracking


@pytest.mark.parametrize(
    ("where", "when", "is_decided"),
    [
        ("graftline.pipeline.promotion.examination:Examination._contestant", "after", False),
        ("graftline.tracking.promotions:Promotions.append", "before", False),
        ("graftline.tracking.promotions:Promotions.append", "after", True),
        ("mlflow.tracking.client:MlflowClient.set_registered_model_alias", "after 2", True),  # after that of "previous"
    ],
)
def test_a_gate_that_is_killed_leaves_the_champion_and_finishes_when_run_again(
    place: Workplace, client: MlflowClient, where: str, when: str, is_decided: bool
) -> None:
    crown(1)
    typed = ["promote", *QUICK, "version=2"]
    process = WarmProcess(partial(die_at, where, when, typed), place.root, place.environment(), place.root / "out.txt")
    assert process.wait(200) == -signal.SIGKILL, process.output
    assert aliases(client)["champion"] == "1", "the old champion stays"
    assert find_break(Promotions(Tracking(), "dusk").read().lines) is None

    verdict = promote("version=2")
    assert verdict.promoted
    assert verdict.is_new is not is_decided
    assert aliases(client) == {"champion": "2", "previous": "1"}
    standing = Promotions(Tracking(), "dusk").read()
    assert [line.decision.kind for line in standing.lines] == ["promoted", "promoted"], "nothing twice"
    runs = decisions(client)
    assert "RUNNING" not in {one.info.status for one in runs}, "the dead one is marked"


@pytest.mark.parametrize(
    ("method", "when"), [("append", "after"), ("_move", "after"), ("tag", "before"), ("end", "before")]
)
def test_a_rollback_that_is_killed_goes_back_once_when_run_again(
    place: Workplace, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, method: str, when: str
) -> None:
    add_version(client)
    for version in (1, 2, 3):
        crown(version)
    original = getattr(Promotions, method)

    def dying(*arguments: object) -> None:
        if when == "after":
            original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Promotions, method, dying)
        with pytest.raises(KeyboardInterrupt):
            run("rollback", "reason=misses dark cells")
    again = run("rollback", "reason=misses dark cells")
    assert (again.facts["version"], again.facts["before"], again.facts["line"]) == (2, 3, 4)
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert client.get_model_version("dusk", "2").tags["graftline.decision"] == "rolled back (line 4)"
    with pytest.raises(UserError, match=r"^Version 2 of dusk is the champion already\.$"):
        run("rollback", "to=2")
    assert run("rollback").facts["version"] == 1, "once more is a decision of its own"
    assert aliases(client) == {"champion": "1"}


def add_version(client: MlflowClient) -> None:
    """Register version 2 once more, as version 3."""
    known = client.get_model_version("dusk", "2")
    client.create_model_version("dusk", str(known.source), known.run_id, tags=known.tags, await_creation_for=0)


def test_a_rollback_to_another_version_is_another_one(
    place: Workplace, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(client)
    for version in (1, 2, 3):
        crown(version)
    with monkeypatch.context() as patch:
        patch.setattr(Promotions, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("rollback")
    assert aliases(client)["champion"] == "3"
    assert run("rollback", "to=1").facts["line"] == 5
    assert aliases(client) == {"champion": "1"}


def interrupted(*_arguments: object) -> None:
    raise KeyboardInterrupt


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, fail: Callable[[], object]) -> None:
    """Let something happen after the next call of a function, and never again."""
    original = getattr(owner, name)

    def failing(*arguments: object, **named: object) -> object:
        monkeypatch.setattr(owner, name, original)
        result = original(*arguments, **named)
        fail()
        return result

    monkeypatch.setattr(owner, name, failing)


def fail_to_promote(capsys: pytest.CaptureFixture[str], *typed: str) -> str:
    """Run the stage on the command line, which ends with 1 and one sentence; returns the sentence."""
    capsys.readouterr()
    assert main(["promote", *QUICK, "version=2", *typed]) == 1
    output = capsys.readouterr().out
    assert "raceback" not in output
    return output.strip().splitlines()[-1]


def test_a_server_that_goes_away_in_the_middle_of_a_gate(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the line is written nothing is decided, after it everything; run again, it goes on from there."""
    monkeypatch.setitem(run_module._END_SECONDS, "FAILED", 0.5)
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server", place.root / "mlflow.db")
    promotions, at = Promotions(Tracking(uri=server.uri), "dusk"), f"tracking.uri={server.uri}"
    try:
        server.start()
        fails_once(monkeypatch, Examination, "run", server.kill)
        assert f"The tracking server {server.uri} does not answer" in fail_to_promote(capsys, at)
        server.start()
        standing = promotions.read()
        assert (standing.lines, standing.champion) == ((), None)

        fails_once(monkeypatch, Promotions, "append", server.kill)
        assert f"The tracking server {server.uri} does not answer" in fail_to_promote(capsys, at)
        server.start()
        standing = promotions.read()
        assert standing.champion is None
        assert standing.interrupted == standing.lines[0]
        assert not promote("version=2", at).is_new
        assert promotions.read().champion == 2
        assert {one.info.status for one in decisions(connect(server.uri))} == {"FINISHED", "FAILED"}
    finally:
        server.kill()


def test_a_database_that_is_locked_in_the_middle_of_a_gate(
    place: Workplace, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(place.root / "mlflow.db", isolation_level=None)) as database:
        sooner = "mlflow.store.db.utils.sql.text"  # MLflow waits for 20 s at each question
        monkeypatch.setattr(sooner, lambda statement: text(statement.replace("20000", "200")))
        fails_once(monkeypatch, Examination, "run", lambda: database.execute("BEGIN EXCLUSIVE"))
        told = fail_to_promote(capsys)
        assert told.startswith("The tracking database ")
        assert "locked" in told
    assert aliases(client) == {"challenger": "2"}
    assert promote("version=2").line.number == 1


def test_a_disk_that_is_full_when_the_verdict_is_written(
    place: Workplace, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def to_full_disk(file: Path, content: object) -> None:
        with files_up_to(1000):
            write_json(file, content)

    with monkeypatch.context() as patch:
        patch.setattr("graftline.pipeline.promotion.decision_log.write_json", to_full_disk)
        assert "verdict.json cannot be written (File too large): make room on the disk" in fail_to_promote(capsys)
    assert Promotions(Tracking(), "dusk").read().lines == ()
    assert aliases(client) == {"challenger": "2"}
    assert {one.info.status for one in decisions(client)} == {"FINISHED", "FAILED"}
    assert promote("version=2").line.number == 1
