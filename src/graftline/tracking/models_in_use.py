"""Which runs have made the models in use: those that an alias of any registered model points to, and what runs now."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.tracking.names import OUTPUT_DIRECTORY, PARENT_RUN
from graftline.tracking.owner import read_owner
from graftline.tracking.paging import find_all
from graftline.tracking.registry import Registry
from graftline.tracking.uri import absolute_uri, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


@dataclass(frozen=True)
class UsedRun:
    """A run whose files are not to be removed.

    Attributes:
        id: of the run.
        directory: its output directory, where it was made.
        started: seconds since 1970.
    """

    id: str
    directory: Path
    started: float


def find_used_runs(uri: str) -> list[UsedRun]:
    """Return the runs behind all aliases of all registered models, those that group them, and those that are running.

    Raises:
        UserError: there is no such database, or MLflow does not answer.
    """
    return [
        UsedRun(run.info.run_id, Path(directory).resolve(), run.info.start_time / 1000)
        for run in Registry(uri).ask(_find)
        if (directory := run.data.tags.get(OUTPUT_DIRECTORY)) is not None
    ]


def is_elsewhere(directory: Path, uri: str) -> bool:
    """Tell whether another database or server than the one at ``uri`` may know what an output directory is needed for.

    That is so, too, where it has an outbox and does not say whose.
    """
    owner = read_owner(directory)
    return owner is None or without_password(owner.uri) != without_password(absolute_uri(uri))


def _find(client: "MlflowClient") -> "list[MlflowRun]":
    from graftline.tracking.client import known_run

    ids = dict.fromkeys(
        version.run_id
        for model in find_all(client.search_registered_models)
        for number in set(model.aliases.values())
        if (version := client.get_model_version(model.name, str(number))).run_id
    )
    runs = [run for run_id in ids if (run := known_run(client, str(run_id))) is not None]
    parents = dict.fromkeys(parent for run in runs if (parent := run.data.tags.get(PARENT_RUN)) is not None)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    running = client.search_runs(experiments, "attributes.status = 'RUNNING'") if experiments else []
    grouping = [run for run_id in parents if (run := known_run(client, run_id)) is not None]
    return [*runs, *grouping, *running]
