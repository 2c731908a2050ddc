"""A retraining whose MLflow server goes away in the middle: nothing is promoted, and the next one goes on."""

from collections.abc import Callable
from functools import partial

from dying import lose_server_at
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
    away = factory.place.run_function(partial(lose_server_at, place, "before", server.group, typed))
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
