"""Say where runs are tracked, and start them; the target of conf/tracking.

Light to import: MLflow is loaded when a run starts.
"""

from __future__ import annotations

import getpass
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.errors import UserError, first_line
from graftline.tracking.names import HOST, OUTPUT_DIRECTORY, PARENT_RUN, STAGE, USER, registered_name
from graftline.tracking.registry import Registry
from graftline.tracking.uri import absolute_uri, sqlite_file, store_name
from graftline.tracking.views import missing_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities import Run as MlflowRun

    from graftline.tracking.run import Run


@dataclass(frozen=True)
class Tracking:
    """Say where runs and models are tracked (Hydra target of conf/tracking/*.yaml).

    Attributes:
        uri: a database (``sqlite:///mlflow.db``) or the address of an MLflow server.
        experiment: MLflow's experiment; None: named after the data set.
        register: put each run's model into the registry.
        system_metrics: record the use of processor, memory, disk, network and GPUs.
        artifacts: where new experiments keep their artifacts; None: beside a local database, or where the server says.
        parent_run_id: run that groups those that are started; None: each stands alone.
    """

    uri: str = "sqlite:///mlflow.db"
    experiment: str | None = None
    register: bool = True
    system_metrics: bool = True
    artifacts: str | None = None
    parent_run_id: str | None = None

    @property
    def is_server(self) -> bool:
        """Whether a server takes the files of runs, also from other machines."""
        return self.uri.startswith(("http://", "https://"))

    def check(self, experiment: str = "") -> None:
        """Make sure that MLflow answers, and takes runs of an experiment, before minutes of other work.

        Args:
            experiment: its name, unless the configuration names one; empty: nobody knows yet.

        Raises:
            UserError: it does not within 10 s, or the experiment is deleted.
        """
        from graftline.tracking.client import connect_checked

        name = self.experiment or experiment
        if not name:
            connect_checked(absolute_uri(self.uri), lambda client: client.search_experiments(max_results=1))
            return
        _, found = connect_checked(absolute_uri(self.uri), lambda client: client.get_experiment_by_name(name))
        if found is not None:
            _refuse_deleted(found)

    def start(
        self,
        *,
        run_name: str,
        experiment: str,
        directory: Path,
        tags: Mapping[str, str],
        resume_run_id: str | None = None,
    ) -> Run:
        """Start a run, or go on with an old one. Use it as a context manager, or call its ``finish``.

        Args:
            run_name: shown in MLflow's user interface.
            experiment: its experiment, unless the configuration names one.
            directory: the run's output directory; the outbox is kept there.
            tags: tags of the run.
            resume_run_id: go on with this run; it keeps its name, experiment and group.

        Raises:
            UserError: MLflow does not answer (within 10 s), the experiment is deleted, there is no run to resume, it is
                still going, or ``directory`` is another run's that is still going or has unsent values.
        """
        from graftline.tracking.client import change_at
        from graftline.tracking.outbox import clear_outbox
        from graftline.tracking.run import Run

        tags = {**tags, OUTPUT_DIRECTORY: str(directory.resolve()), HOST: platform.node()}
        if resume_run_id is not None:
            run = self._existing_run(resume_run_id)
        else:
            tags[USER] = user_name()
            tags["mlflow.source.name"] = tags.get(STAGE, Path(sys.argv[0]).name)
            if self.parent_run_id is not None:
                tags[PARENT_RUN] = self.parent_run_id
            with change_at(absolute_uri(self.uri)):
                client, experiment_id = self._experiment(self.experiment or experiment)
            clear_outbox(directory)
            with change_at(absolute_uri(self.uri)):
                run = client.create_run(experiment_id, run_name=run_name, tags=tags)
        return Run(
            run,
            directory.resolve(),
            uri=absolute_uri(self.uri),
            tags=tags,
            is_resumed=resume_run_id is not None,
            registers=self.register,
            system_metrics=self.system_metrics,
        )

    def start_group(self, *, name: str, experiment: str, directory: Path, stage: str | None = None) -> Run:
        """Start the run that groups others, whose tracking has its id as ``parent_run_id``; then ``finish`` it."""
        tracking = replace(self, system_metrics=False)  # each run of the group records its own
        tags = {"graftline.group": "true", **({} if stage is None else {STAGE: stage})}
        return tracking.start(run_name=name, experiment=experiment, directory=directory, tags=tags)

    def registry(self) -> Registry:
        """Return what reads registered models, and the data sets of runs, at this URI."""
        return Registry(self.uri)

    def find_output_directory(self, run_id: str) -> Path:
        """Return the output directory of a run.

        Raises:
            UserError: there is no such run, or its directory is not on this machine.
        """
        tags = self._existing_run(run_id).data.tags
        if OUTPUT_DIRECTORY not in tags:
            raise UserError(f"Run {run_id} was not made by graftline: it has no output directory.")
        directory = Path(tags[OUTPUT_DIRECTORY])
        if not directory.is_dir():
            raise UserError(f"Run {run_id} has its output in {directory} on {tags.get(HOST)}, which is not here.")
        return directory

    def find_runs(self, directory: Path) -> list[str]:
        """Return the ids of the runs, of this group if there is one, with this output directory; the newest first.

        Raises:
            UserError: MLflow does not answer within 10 s.
        """
        from graftline.tracking.client import connect_checked

        ours, parent = str(directory.resolve()), self.parent_run_id

        def experiments(client: MlflowClient) -> list[str]:
            if parent is None:
                return [one.experiment_id for one in client.search_experiments()]
            return [client.get_run(parent).info.experiment_id]

        client, places = connect_checked(absolute_uri(self.uri), experiments)
        query = f'tags.`{OUTPUT_DIRECTORY}` = "{ours}"' if parent is None else f"tags.`{PARENT_RUN}` = '{parent}'"
        runs = client.search_runs(places, query, max_results=10_000)
        return [str(run.info.run_id) for run in runs if run.data.tags.get(OUTPUT_DIRECTORY) == ours]

    def mark_lost(self, run_id: str) -> None:
        """Mark a run as failed that is still going, as MLflow has it, and whose machine is lost.

        Raises:
            UserError: MLflow does not answer within 10 s.
        """
        from graftline.tracking.client import connect_checked

        def end(client: MlflowClient) -> None:
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_terminated(run_id, "FAILED")

        connect_checked(absolute_uri(self.uri), end)

    def _experiment(self, name: str) -> tuple[MlflowClient, str]:
        """Return a client and the id of the experiment ``name``, which is created if missing."""
        from mlflow.exceptions import MlflowException

        from graftline.tracking.client import connect_checked
        from graftline.tracking.mlflow_errors import is_refusal

        client, experiment = connect_checked(absolute_uri(self.uri), lambda client: client.get_experiment_by_name(name))
        if experiment is None:
            try:
                location = self.artifact_location(name)
                created = client.create_experiment(name, artifact_location=location)
                experiment = client.get_experiment(created)
            except MlflowException as error:
                if not is_refusal(error):
                    raise
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was faster
                    raise UserError(f"MLflow does not take the experiment '{name}': {first_line(error)}.") from error
                experiment = client.get_experiment_by_name(name)
                assert experiment is not None
        _refuse_deleted(experiment)
        for key, value in missing_tags(experiment.tags).items():
            client.set_experiment_tag(experiment.experiment_id, key, value)
        return client, experiment.experiment_id

    def artifact_location(self, experiment: str) -> str | None:
        """Return where a new experiment keeps its files; None: where the server says."""
        root = self.artifacts
        if root is None:
            file = sqlite_file(absolute_uri(self.uri))
            if file is None:
                return None
            root = str(file.parent / "mlartifacts")
        if "://" not in root:
            root = Path(root).resolve().as_uri()
        return f"{root}/{registered_name(experiment)}"

    def _existing_run(self, run_id: str) -> MlflowRun:
        from graftline.tracking.client import connect_checked, find_run

        uri = absolute_uri(self.uri)
        return connect_checked(uri, lambda client: find_run(client, run_id, store_name(uri)))[1]


def _refuse_deleted(experiment: Experiment) -> None:
    """Make sure that an experiment takes runs.

    Raises:
        UserError: it is deleted.
    """
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore -x {experiment.experiment_id}"
        raise UserError(
            f"The experiment '{experiment.name}' is deleted: restore it with `{restore}`, or take another "
            "Tracking.experiment."
        )


def user_name() -> str:
    """Return who works on this machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
