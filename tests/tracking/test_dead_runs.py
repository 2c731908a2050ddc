"""Runs whose process was killed say so in MLflow, once another one of their kind begins."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient

from graftline.tracking.dead_runs import end_dead_runs
from graftline.tracking.journal import Journal
from graftline.tracking.names import ERROR, STAGE, USER
from graftline.tracking.tracking import Tracking

Start = Callable[..., str]


@pytest.fixture
def start(tracking: Tracking, tmp_path: Path) -> Start:
    """Return a function that begins a run, and leaves it as a killed process does: its last values are not sent."""

    def begin(name: str, stage: str, parent: str | None = None) -> str:
        """Return its id; nobody holds it, and it has no end."""
        begun = Tracking(tracking.uri, system_metrics=False, parent_run_id=parent).start(
            run_name=name, experiment="pets", directory=tmp_path / name, tags={STAGE: stage}
        )
        begun._outbox.close()
        begun._outbox._thread.join()
        return begun.id

    return begin


def test_those_of_a_stage_are_ended_with_all_below_them(
    tracking: Tracking, client: MlflowClient, start: Start, tmp_path: Path
) -> None:
    search = start("search", "search")
    trial, training = (start(name, name, search) for name in ("search trial", "ensemble"))
    member, other = start("member", "train", training), start("other", "train")
    own = partial(tracking.start, experiment="pets", directory=tmp_path / "going on", tags={STAGE: "search"})
    with own(run_name="going on") as running:
        assert end_dead_runs(tracking.registry(), "pets", "search") == [search, trial, training, member]
        states = {run_id: client.get_run(run_id).info.status for run_id in (other, running.id)}
    assert set(states.values()) == {"RUNNING"}
    for run_id in (search, trial, training, member):
        found = client.get_run(run_id)
        assert (found.info.status, found.data.tags[ERROR]) == ("KILLED", "the process ended without a word")
    late = start("late", "train", training)  # of one that was ended, and was gone on with
    assert end_dead_runs(tracking.registry(), "pets", "search") == [late]
    assert end_dead_runs(tracking.registry(), "pets") == [other]
    client.set_tag(start("of somebody else", "search"), USER, "somebody else")  # whose process may go on
    assert end_dead_runs(tracking.registry(), "pets") == []
    assert end_dead_runs(tracking.registry(), "no such experiment") == []
    assert end_dead_runs(Tracking(f"sqlite:///{tmp_path / 'none.db'}").registry(), "pets") == []


def test_one_that_had_ended_is_sent_as_it_ended(
    tracking: Tracking, client: MlflowClient, start: Start, tmp_path: Path
) -> None:
    ended, unwritable, killed = (start(name, "search") for name in ("ended", "unwritable", "killed"))
    journal = Journal(tmp_path / "ended" / "outbox")
    journal.append({"kind": "status", "at": 1, "status": "FINISHED"})
    journal.close()
    (tmp_path / "unwritable" / "outbox" / "journal.jsonl").unlink()
    (tmp_path / "unwritable" / "outbox" / "journal.jsonl").mkdir()
    assert end_dead_runs(tracking.registry(), "pets", "search") == [killed]
    assert [client.get_run(run_id).info.status for run_id in (ended, unwritable)] == ["FINISHED", "RUNNING"]
