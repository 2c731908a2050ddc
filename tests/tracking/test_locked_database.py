"""A local database that another process has locked: it is waited for, or what is not written is kept for later."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from locking import be_impatient, locked
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from graftline.errors import UserError
from graftline.tracking import run as run_module
from graftline.tracking.ledger import ChampionDecision
from graftline.tracking.names import CHAMPION
from graftline.tracking.outbox import sync
from graftline.tracking.promotions import Promotions, author, now
from graftline.tracking.run import Run
from graftline.tracking.tracking import Tracking

SECONDS = 3.0  # below the 20 that MLflow waits
LOCKED = r"^The tracking database .*mlflow\.db is locked by another process .*: run the same command again"


@pytest.fixture
def database(tracking: Tracking) -> Path:
    return Path(tracking.uri.removeprefix("sqlite:///"))


@pytest.fixture
def run(tracking: Tracking, directory: Path) -> Run:
    return tracking.start(run_name="first", experiment="pets", directory=directory, tags={})


@pytest.fixture
def pets(tracking: Tracking, client: MlflowClient, tmp_path: Path) -> Promotions:
    """A model with two versions, of which the first is champion."""
    client.create_registered_model("pets")
    for _ in range(2):
        client.create_model_version("pets", source=str(tmp_path), await_creation_for=0)
    pets = Promotions(tracking, "pets", tmp_path / "ledger")
    pets.open()
    pets.finish(pets.append(pets.read(), promoted(1, None)))
    return pets


def promoted(version: int, before: int | None) -> ChampionDecision:
    return ChampionDecision("pets", "promoted", version, before, version, author(), now(), before, ("Because.",))


def log(run: Run, bundle: Path, photo: bytes) -> str | None:
    """Log as a training does, with a model at its end."""
    for step in range(20):
        run.log_metrics({"loss": step / 2}, step)
    run.log_params({"seed": 0}, "seed: 0")
    return run.log_model(
        bundle, registered_name="pets", input_example=photo, metrics={"accuracy": 0.5}, tags={"a": "b"}
    )


def check_complete(client: MlflowClient, run: Run) -> None:
    """Make sure that all is there, and once."""
    history = client.get_metric_history(run.id, "loss")
    assert [(one.step, one.value) for one in history] == [(step, step / 2) for step in range(20)]
    assert client.get_run(run.id).data.params == {"seed": "0"}
    versions: list[ModelVersion] = list(client.search_model_versions("name = 'pets'"))
    assert [(int(one.version), one.run_id, one.tags["a"]) for one in versions] == [(1, run.id, "b")]
    assert len(client.search_logged_models([client.get_run(run.id).info.experiment_id])) == 1


def test_a_training_waits_for_it(
    run: Run, database: Path, client: MlflowClient, bundle: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_MODEL_SECONDS", 300.0)  # on a busy machine
    monkeypatch.setitem(run_module._END_SECONDS, "FINISHED", 300.0)
    with locked(database, SECONDS), run:
        assert log(run, bundle, photo) == "models:/pets/1"
    check_complete(client, run)
    assert client.get_run(run.id).info.status == "FINISHED"


def test_what_a_training_could_not_write_is_sent_later(
    run: Run,
    database: Path,
    client: MlflowClient,
    bundle: Path,
    photo: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    be_impatient(monkeypatch)
    monkeypatch.setattr(run_module, "_MODEL_SECONDS", 1.0)
    monkeypatch.setitem(run_module._END_SECONDS, "FINISHED", 1.0)
    with locked(database), run:
        assert log(run, bundle, photo) is None
    told = " ".join(capsys.readouterr().out.split())
    assert "records of run" in told
    assert "sync() sends them" in told
    assert "MLflow refused" not in told
    assert client.search_registered_models() == []
    report = sync(run.directory)
    assert (report.num_unsent, report.refused, report.problem) == (0, (), None)
    check_complete(client, run)
    assert sync(run.directory).num_sent == 0


@pytest.mark.parametrize("step", ["the line", "the alias"])
def test_a_promotion_waits_for_it(step: str, pets: Promotions, database: Path) -> None:
    standing, decision = pets.read_sound(), promoted(2, 1)
    with locked(database, SECONDS if step == "the line" else 0):
        line = pets.append(standing, decision)
    with locked(database, SECONDS if step == "the alias" else 0):
        pets.finish(line)
    standing = pets.read()
    assert (standing.champion, standing.interrupted) == (2, None)


@pytest.mark.parametrize("when", ["before", "in the middle"])
def test_the_alias_moves_once_it_can(
    when: str, pets: Promotions, database: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_impatient(monkeypatch)
    standing, decision = pets.read_sound(), promoted(2, 1)
    with locked(database), pytest.raises(UserError, match=LOCKED):
        pets.append(standing, decision)
    assert pets.read().lines == standing.lines, "nothing is decided"
    line = pets.append(standing, decision)
    if when == "before":
        with locked(database), pytest.raises(UserError, match=LOCKED):
            pets.finish(line)
    else:
        change = MlflowClient.set_registered_model_alias
        with monkeypatch.context() as patch, ExitStack() as stack:

            def locked_at_the_champion(self: MlflowClient, name: str, alias: str, version: str) -> None:
                if alias == CHAMPION:  # the last of three changes
                    stack.enter_context(locked(database))
                change(self, name, alias, version)

            patch.setattr(MlflowClient, "set_registered_model_alias", locked_at_the_champion)
            with pytest.raises(UserError, match=LOCKED):
                pets.finish(line)
    assert pets.read().champion == 1
    assert pets.read().interrupted == line
    standing = pets.read_sound()
    assert (standing.champion, standing.interrupted) == (2, None)
    assert len(standing.lines) == 2
