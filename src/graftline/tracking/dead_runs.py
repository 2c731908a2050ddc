"""Runs that MLflow still calls RUNNING, but whose process on this machine was killed."""

import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.errors import UserError
from graftline.tracking.names import HOST, OUTPUT_DIRECTORY, PARENT_RUN, STAGE, USER
from graftline.tracking.owner import read_owner
from graftline.tracking.registry import Registry
from graftline.tracking.tracking import user_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


def end_dead_runs(registry: Registry, experiment: str, stage: str | None = None) -> list[str]:
    """Mark the runs of this user KILLED that were killed on this machine, with what they left unsent.

    Those of others are left to them: whether one goes on is told by files that its user alone can read.

    Args:
        registry: of the MLflow that has them.
        experiment: its name.
        stage: of the runs that are meant, with those that run below them; None: all.

    Returns:
        Their ids, but for those that had ended before they were killed: what they left unsent says how.

    Raises:
        UserError: MLflow does not answer.
    """
    from graftline.tracking.client import known_run
    from graftline.tracking.outbox import sync

    def is_meant(client: "MlflowClient", run: "MlflowRun | None") -> bool:
        """Tell whether a run, or one that it is below, is of the stage; those above may have ended."""
        while run is not None and stage is not None and run.data.tags.get(STAGE) != stage:
            parent = run.data.tags.get(PARENT_RUN)
            run = None if parent is None else known_run(client, parent)
        return run is not None

    def find(client: "MlflowClient") -> "list[MlflowRun]":
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return []
        here = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{platform.node()}'"
        runs = client.search_runs([found.experiment_id], here, order_by=["attributes.start_time ASC"])
        mine = [run for run in runs if run.data.tags.get(USER) == user_name()]
        return [run for run in mine if OUTPUT_DIRECTORY in run.data.tags and is_meant(client, run)]

    if not registry.is_there:
        return []
    ended = list[str]()
    for run in registry.ask(find):
        run_id, directory = run.info.run_id, Path(run.data.tags[OUTPUT_DIRECTORY])
        owner = read_owner(directory)
        if owner is not None and owner.run_id == run_id:
            with suppress(UserError, OSError):  # it is still going, or its disk can only be read
                sync(directory)
        else:  # killed before it wrote there; one that is just about to write says in the end how it ended
            registry.ask(lambda client, run_id=run_id: client.set_terminated(run_id, "KILLED"))  # type: ignore[misc]  # a lambda
        if registry.ask(lambda client, run_id=run_id: client.get_run(run_id)).info.status == "KILLED":  # type: ignore[misc]  # likewise
            ended.append(run_id)
    return ended
