"""The runs of a sweep, spread over a Ray cluster: each is a task, which goes on elsewhere where its worker is lost."""

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from graftline.data.references import find_url
from graftline.files import write_json
from graftline.locks import Lock
from graftline.pipeline.cli.composed_stage import ComposedStage
from graftline.pipeline.cli.errors import EXIT_MISTAKE, Outcome, describe_error
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.runs.elsewhere import (
    check_weights,
    discard_result_of_others,
    find_begun,
    find_nodes_apart,
    read_files,
    work_in,
)
from graftline.ray_board import Board, Reporter
from graftline.ray_cluster import RayCluster

HERE = {"_target_": "graftline.ray_cluster.NoCluster"}  # of the runs themselves, which are spread already
SECONDS_FOR_THE_EARLIER = 30.0  # that a worker which was lost may take to notice and end
SECONDS_BETWEEN_LOOKS = 0.5
_VARIABLE = re.compile(r"\$\{oc\.env:\s*(\w+)")


@dataclass(frozen=True)
class RemoteJob:
    """A job in plain values, for a process of another machine, which does not spread its own work.

    Attributes:
        folder: the directory that paths start from.
        name: of the stage.
        config: of the stage, as YAML; what it reads from the environment stays unread, as it may be a password.
        overrides: that led to it.
        directory: its output directory, without the result of an earlier command.
        config_dir: folder of the user's own options; empty: there is none.
        variables: of the environment, which the configuration reads, as they are where the command was typed; None: it
            is not set there.
        earlier: runs in MLflow that an earlier command has left in this directory.
    """

    folder: str
    name: str
    config: str
    overrides: Sequence[str]
    directory: str
    config_dir: str
    variables: Mapping[str, str | None]
    earlier: Sequence[str] = ()

    @classmethod
    def of(cls, job: ComposedStage, changes: Mapping[str, Any] | None = None, earlier: Sequence[str] = ()) -> Self:
        """Return that of a job.

        Args:
            job: the job.
            changes: keys of its configuration with the values that they have there.
            earlier: as above.
        """
        config = job.config.copy()
        for key, value in {"cluster": HERE, **(changes or {})}.items():
            OmegaConf.update(config, key, value, merge=False)
        text = OmegaConf.to_yaml(config)
        variables = {name: os.environ.get(name) for name in _VARIABLE.findall(text)}
        own, directory = str(job.config_dir or ""), str(job.directory.absolute())
        return cls(str(Path.cwd()), job.name, text, job.overrides, directory, own, variables, earlier)

    def compose(self) -> ComposedStage:
        """Return the job, in a process that has its variables."""
        config = OmegaConf.create(self.config)
        assert isinstance(config, DictConfig)
        own = Path(self.config_dir) if self.config_dir else None
        return ComposedStage(self.name, config, list(self.overrides), Path(self.directory), own)


def ray_cluster_of(jobs: Sequence[ComposedStage]) -> RayCluster | None:
    """Return the cluster over which runs are to be spread; None: they run here.

    Raises:
        UserError: a run would be several processes.
    """
    from graftline.training.trainer import check_spread  # with torch, which a mistyped key must not wait for

    first = jobs[0]
    cluster = instantiate(first.config.cluster) if "cluster" in first.config and first.name == "train" else None
    if not isinstance(cluster, RayCluster):
        return None
    for job in jobs:
        check_spread(instantiate(job.config.trainer), cluster)
    return cluster


def run_spread(jobs: Sequence[ComposedStage], ray_cluster: RayCluster, board: Board) -> Iterator[tuple[int, Outcome]]:
    """Run jobs anew, several at a time, and show them; yields the number of each that has ended, and how it did.

    The nodes need the images at the same place, and so the output directory and the tracking database, or a server.
    """
    first = jobs[0].config
    images = [*dict.fromkeys(chain(*map(first_file, jobs)))]
    apart = find_nodes_apart(ray_cluster, jobs[0].directory.parent, images, instantiate(first.tracking))
    backbones = {OmegaConf.to_yaml(job.config.backbone): job.config.backbone for job in jobs}
    check_weights(ray_cluster, [*map(instantiate, backbones.values())])
    parents = [*map(_find_parent, jobs)]  # nodes that share the output directory alone lack them, too
    files = ray_cluster.share(read_files([*dict.fromkeys(file for parent in parents for file in parent.files)]))
    for job in jobs:  # of an earlier command with the same directory
        own = RunDirectory(job.directory)
        own.result.unlink(missing_ok=True)
        if apart:  # or it would stay beside the result of a run on another machine
            shutil.rmtree(own.bundle, ignore_errors=True)
    remote = (RemoteJob.of(job, parent.changes) for job, parent in zip(jobs, parents, strict=True))
    tasks = ((job, board.reporter(number), files) for number, job in enumerate(remote))
    slots = ray_cluster.slots()
    for number, get in ray_cluster.as_completed(run_job, tasks, slots=slots, stop=board.stop):
        try:
            outcome = get()
        except Exception as error:  # a task that was lost for good, or could not begin: the others go on
            outcome = Outcome(EXIT_MISTAKE, describe_error(error))
        if outcome.result and not (kept := RunDirectory(jobs[number].directory).result).exists():
            write_json(kept, outcome.result)
        board.end(number)
        yield number, outcome


class _Parent(NamedTuple):
    """The dataset version from which a job inherits its splits, for nodes that may have others.

    Attributes:
        changes: of the job's configuration, which then names that version.
        files: of it.
    """

    changes: dict[str, str]
    files: list[Path]


def _find_parent(job: ComposedStage) -> _Parent:
    """Return the parent that a job has here; a node looks up by itself what MLflow knows."""
    named = OmegaConf.select(job.config, "data.parent")
    if named is None or (named != "newest" and not Path(named).expanduser().is_dir()):
        return _Parent({}, [])
    version = instantiate(job.config.data).find_parent()
    if version is None:
        return _Parent({"data.parent": "none"}, [])
    return _Parent({"data.parent": str(version.directory.absolute())}, version.files)


def first_file(job: ComposedStage) -> list[Path]:
    """Return a file of a job's images, which nodes need, too; nothing where they are at a URL or have a name."""
    path = OmegaConf.select(job.config, "data.path")
    if path is None or find_url(path) is not None:
        return []
    files = (Path(folder) / names[0] for folder, _, names in os.walk(path) if names)  # the folder may be empty there
    return [*([Path(path)] if Path(path).is_file() else islice(files, 1))]


def run_job(
    remote: RemoteJob, reporter: Reporter | None = None, files: Mapping[str, bytes] = MappingProxyType({})
) -> Outcome:
    """Run a job on a worker. One whose worker was lost goes on with its run in MLflow.

    Args:
        remote: the job.
        reporter: of what it is at.
        files: that it needs, of the machine where the command was typed.
    """
    from graftline.pipeline.cli.sweep import attempt

    work_in(remote.folder, files)
    set_variables(remote.variables)
    job = remote.compose()
    with nullcontext() if reporter is None else reporter.telling():
        _wait_for_the_earlier(job.directory)  # which may still finish
        outcome = attempt(job, partial(_begun, earlier=remote.earlier))
        return outcome._replace(result=RunDirectory(job.directory).read_result())


def _begun(job: ComposedStage, earlier: Sequence[str]) -> ComposedStage | None:
    """Return a job as it goes on with its run in MLflow, where an earlier worker has begun one; None: it is done."""
    own, tracking = RunDirectory(job.directory), instantiate(job.config.tracking)
    discard_result_of_others(own, tracking)
    if own.result.exists():
        return None
    run_id = find_begun(job.directory, tracking, earlier)
    return job if run_id is None else job.with_value("train.resume", run_id)


def _wait_for_the_earlier(directory: Path) -> None:
    """Wait until an earlier worker, which Ray has lost but which may live on, has noticed and ended."""
    deadline = time.monotonic() + SECONDS_FOR_THE_EARLIER
    while (directory / ".hydra").exists() and time.monotonic() < deadline:
        try:
            with Lock(directory / ".hydra" / "lock", shared=False, temporary=True):
                return
        except BlockingIOError:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def set_variables(variables: Mapping[str, str | None]) -> None:
    """Give this process some variables of another one's environment; None: that one does not have it."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
