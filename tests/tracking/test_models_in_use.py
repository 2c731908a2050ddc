"""Which runs are in use: those behind aliases, those that group them, and those that run."""

from pathlib import Path

from gone_run import remove_for_good
from mlflow import MlflowClient

from graftline.tracking.models_in_use import find_used_runs
from graftline.tracking.names import OUTPUT_DIRECTORY, PARENT_RUN
from graftline.tracking.tracking import Tracking


def test_a_run_that_is_gone_for_good_is_in_nobodys_way(
    tracking: Tracking, client: MlflowClient, tmp_path: Path
) -> None:
    """As after `mlflow gc`: a run behind an alias, and the run that groups another one."""
    experiment = client.create_experiment("pets", artifact_location=tmp_path.as_uri())

    def begin(name: str, **tags: str) -> str:
        run = client.create_run(experiment, tags={OUTPUT_DIRECTORY: str(tmp_path / name), **tags})
        client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    group, gone = begin("group"), begin("gone")
    member = begin("member", **{PARENT_RUN: group})
    client.create_registered_model("pets")
    for alias, run_id in (("champion", member), ("previous", gone)):
        version = client.create_model_version("pets", tmp_path.as_uri(), run_id, await_creation_for=0)
        client.set_registered_model_alias("pets", alias, str(version.version))
    assert {one.id for one in find_used_runs(tracking.uri)} == {member, gone, group}
    for run_id in (gone, group):
        remove_for_good(tmp_path / "mlflow.db", run_id)
    (used,) = find_used_runs(tracking.uri)
    assert (used.id, used.directory) == (member, tmp_path / "member")
