"""The retrainings of a model as MLflow has them: those of other models beside it, and clocks that are set back."""

from pathlib import Path

import pytest
from gone_run import remove_for_good
from mlflow import MlflowClient

from graftline.tracking.names import HOST, OUTPUT_DIRECTORY, STAGE
from graftline.tracking.retrainings import KEY, MODEL, OUTCOME, RETRAIN, Retrainings, decided_tags
from graftline.tracking.tracking import Tracking

SHARED = "production"  # an experiment of several models


@pytest.fixture
def experiment(client: MlflowClient, tmp_path: Path) -> str:
    return str(client.create_experiment(SHARED, artifact_location=str(tmp_path / "artifacts")))


def begin(client: MlflowClient, experiment: str, model: str, key: str, started: int | None = None) -> str:
    """Start the run of a retraining on a machine whose disk is not here."""
    tags = {STAGE: RETRAIN, MODEL: model, KEY: key, OUTPUT_DIRECTORY: "/elsewhere", HOST: "another"}
    return str(client.create_run(experiment, start_time=started, tags=tags).info.run_id)


def decide(client: MlflowClient, run_id: str, known: Retrainings, outcome: str, version: int) -> None:
    for key, value in decided_tags(outcome, version, known.decided()).items():
        client.set_tag(run_id, key, value)
    client.set_terminated(run_id)


def test_models_that_share_an_experiment_leave_one_another_alone(
    tracking: Tracking, client: MlflowClient, experiment: str
) -> None:
    cats, dogs = (Retrainings(tracking.uri, SHARED, model) for model in ("cats", "dogs"))
    group = begin(client, experiment, "dogs", "k")
    training = client.create_run(experiment, tags={"mlflow.parentRunId": group}).info.run_id
    assert cats.end_dead() == []
    assert {client.get_run(run).info.status for run in (group, training)} == {"RUNNING"}
    decide(client, group, dogs, "promoted", 1)
    assert (cats.decided(), cats.decided("k")) == (None, None)
    found = dogs.decided("k")
    assert found is not None
    assert (found.run_id, found.outcome, found.version) == (group, "promoted", 1)
    assert dogs.end_dead() == [training]
    assert client.get_run(training).info.status == "KILLED"


def test_a_group_that_is_gone_for_good_is_in_nobodys_way(
    tracking: Tracking, client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    group = begin(client, experiment, "dogs", "k")
    client.create_run(experiment, tags={"mlflow.parentRunId": group})
    remove_for_good(tmp_path / "mlflow.db", group)
    assert Retrainings(tracking.uri, SHARED, "dogs").end_dead() == []


def test_the_last_one_is_the_last_whatever_clocks_say(
    tracking: Tracking, client: MlflowClient, experiment: str
) -> None:
    known = Retrainings(tracking.uri, SHARED, "cats")
    started = 1_700_000_000_000
    runs = [begin(client, experiment, "cats", f"{number % 3}", started - number) for number in range(12)]
    for version, run in enumerate(runs, 1):
        decide(client, run, known, "refused", version)
        last = known.decided()
        assert last is not None
        assert (last.run_id, last.version, last.number) == (run, version, version)
    of_key = known.decided("0")
    assert of_key is not None
    assert of_key.run_id == runs[9]
    begin(client, experiment, "cats", "0", started + 1)
    last = known.decided()
    assert last is not None
    assert last.run_id == runs[-1], "what is not decided is no last one"


def test_the_outcome_comes_last() -> None:
    """A retraining that has one is decided, and has all else."""
    assert list(decided_tags("promoted", 3, None))[-1] == OUTCOME
