"""Runs whose process was killed say so in MLflow, once another one of their kind begins."""

from functools import partial
from pathlib import Path

from mlflow import MlflowClient

from graftline.tracking.dead_runs import end_dead_runs
from graftline.tracking.names import ERROR, STAGE, USER
from graftline.tracking.tracking import Tracking


def test_those_of_a_stage_are_ended_with_all_below_them(
    tracking: Tracking, client: MlflowClient, tmp_path: Path
) -> None:
    def start(name: str, stage: str, parent: str | None = None) -> str:
        """Begin a run, and leave it as a killed process does: unsent values, no end, and nobody who holds it."""
        begun = Tracking(tracking.uri, system_metrics=False, parent_run_id=parent).start(
            run_name=name, experiment="pets", directory=tmp_path / name, tags={STAGE: stage}
        )
        begun._outbox.close()
        begun._outbox._thread.join()
        return begun.id

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
    assert end_dead_runs(tracking.registry(), "pets") == [other]
    client.set_tag(start("of somebody else", "search"), USER, "somebody else")  # whose process may go on
    assert end_dead_runs(tracking.registry(), "pets") == []
    assert end_dead_runs(tracking.registry(), "no such experiment") == []
    assert end_dead_runs(Tracking(f"sqlite:///{tmp_path / 'none.db'}").registry(), "pets") == []
