"""A retraining whose MLflow goes away in the middle: nothing is promoted on half the facts, the next one goes on."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from cut_line import Line, Loses
from dying import hurried, lock_at, lock_for_good_at, lose_server_at
from factory import NAME, Factory
from mlflow import MlflowClient
from mlflow_server import Server
from workplace import Workplace

from graftline.tracking.names import CHAMPION
from graftline.tracking.registry import Registry


def test_a_retraining_goes_on_when_the_server_is_back(
    server: Server, make_workplace: Callable[[str], Workplace]
) -> None:
    factory = Factory(make_workplace("away"))
    factory.settings += ["tracking=server", f"tracking.uri={server.uri}", "trainer.max_epochs=6"]
    factory.paint(20)
    place = "graftline.pipeline.retraining.challengers:Challengers.register"
    typed = ["retrain", *factory.settings]
    away = factory.place.run_function(partial(lose_server_at, place, "before", server.pid, typed))
    server.kill()  # what may be left of it
    server.start()
    assert away.code == 1, away.output
    assert f"{server.uri} does not answer" in away.output.splitlines()[-1], away.output
    assert "Traceback" not in away.output
    assert factory.results()[-1]["outcome"] == "failed"
    registry = Registry(server.uri)
    assert registry.aliased(NAME, CHAMPION) is None

    ran = factory.retrain()
    assert ran.code == 0, ran.output
    assert "The challenger with a fresh start was trained before" in ran.output
    assert ran.result["outcome"] == "promoted"
    assert [version.version for version in registry.versions(NAME)] == [1], "registered once"
    client = MlflowClient(server.uri)
    experiments = [one.experiment_id for one in client.search_experiments() if one.name.startswith(NAME)]
    statuses = [run.info.status for run in client.search_runs(experiments)]
    assert len(statuses) == 4, "the retraining, its training, the decision and the ledger"
    assert "RUNNING" not in statuses


# a step → the request with which it begins there to ask the server, which one of that kind, and what of it is lost;
# benchmarks/retrain_cuts.py cuts at each request
STEPS: dict[str, tuple[str, int, Loses]] = {
    "taking the lease": ("registered-models/create", 1, "answer"),
    "logging the dataset": ("runs/log-inputs", 1, "request"),
    "training": ("runs/log-batch", 9, "request"),
    "registering the version": ("model-versions/create", 1, "answer"),
    "writing the line": ("runs/log-parameter", 1, "answer"),
    "moving the alias": ("registered-models/alias", 2, "request"),
    "noting that it has moved": ("runs/log-parameter", 1, "request"),
    "noting what was decided": ("runs/log-batch", 3, "request"),
}


@pytest.fixture
def own_server(empty_database: Path, tmp_path: Path) -> Iterator[Server]:
    """A server without models; the other one has what the test above has left."""
    server = Server(tmp_path, empty_database)
    server.start()
    yield server
    server.kill()


def test_the_server_goes_away_at_each_step_of_a_retraining(
    own_server: Server, make_workplace: Callable[[str], Workplace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One retraining that is started again after each: it goes on, and in the end all is there once."""
    server = own_server
    monkeypatch.setattr(
        "graftline.tracking.client.START_SECONDS", 120.0
    )  # what the test itself asks, on a busy machine
    monkeypatch.setattr("graftline.tracking.client._START_REQUEST_SECONDS", 60)
    with Line(server.port).open() as line:
        factory = Factory(make_workplace("steps"), uri=server.uri)
        factory.settings += ["tracking=server", f"tracking.uri={line.uri}", "trainer.max_epochs=6"]
        factory.paint(20)
        has_moved = False
        for step, (at, number, loses) in STEPS.items():
            line.cut(at, number, loses)
            away = factory.place.run_function(partial(hurried, ["retrain", *factory.settings]))
            assert line.is_cut, (step, line.asked, away.output)
            line.mend()
            has_moved = has_moved or step == "noting that it has moved"
            assert (away.code, "Traceback" in away.output) == (1, False), (step, away.output)
            assert re.search(r"(the connection broke|MLflow has not taken)", away.output.splitlines()[-1]), away.output
            assert (factory.champion is not None) is has_moved, step
        trained = [run for run in factory.runs(stage="train") if run.info.status == "FINISHED"]
        assert len(trained) == 1
        ran = factory.place.run_function(partial(hurried, ["retrain", *factory.settings]))
        assert ran.code == 0, ran.output
        assert ran.result["outcome"] == "promoted"
        factory.check(1)


LEASE, FIT = "graftline.tracking.lease:Lease._create", "pytorch_lightning:Trainer.fit"
REGISTER = "graftline.tracking.models:_registered_version"
LINE, ALIAS = (f"graftline.tracking.promotions:Promotions.{name}" for name in ("append", "_move"))


def test_a_database_that_another_process_writes_into(make_workplace: Callable[[str], Workplace]) -> None:
    """For good: a sentence, wherever it begins, and the next one goes on. For seconds: it is waited for."""
    factory = Factory(make_workplace("locked"))
    factory.settings.append("trainer.max_epochs=6")
    factory.paint(20)
    typed, database = ["retrain", *factory.settings], factory.place.root / "mlflow.db"
    for place in (LEASE, FIT, REGISTER, LINE, ALIAS):
        locked = factory.place.run_function(partial(lock_for_good_at, place, database, typed))
        assert (locked.code, "Traceback" in locked.output) == (1, False), (place, locked.output)
        told = r"^The tracking database .*mlflow\.db is locked by another process .*: run the same command again"
        if place == REGISTER:  # it is sent by a thread of its own, which keeps it
            told = r"^MLflow has not taken the model of run .*: start the retraining again"
        assert re.search(told, locked.output.splitlines()[-1]), (place, locked.output)
        assert factory.results()[-1]["outcome"] == "failed"
        assert factory.champion is None
        assert ("epoch   6 of 6" in locked.output) == (place == FIT), "it is trained once, and on the disk"
    ran = factory.place.run_function(partial(lock_at, (LEASE,), database, 2.0, typed))
    assert ran.code == 0, ran.output
    assert "was trained before" in ran.output
    assert ran.result["outcome"] == "promoted"
    factory.check(1)

    factory.paint(5)
    everywhere = (LEASE, FIT, REGISTER, LINE)
    ran = factory.place.run_function(partial(lock_at, everywhere, database, 2.0, typed))
    assert ran.code == 0, ran.output
    assert "records of run" not in ran.output, "all is sent"
    factory.check(2)
