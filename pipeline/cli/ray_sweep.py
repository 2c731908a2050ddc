"""The runs of a sweep, spread over a Ray cluster: each is a task, which goes on elsewhere where its worker is lost."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from graftline.pipeline.cli.composed_stage import ComposedStage
from graftline.pipeline.cli.errors import EXIT_DONE
from graftline.pipeline.runs.directory import RunDirectory
from graftline.ray_cluster import RayCluster

HERE = {"_target_": "graftline.ray_cluster.NoCluster"}  # of the runs themselves, which are spread already
SECONDS_TO_END = 20.0  # that a run which is interrupted may take to say so to MLflow


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


def run_spread(jobs: Sequence[ComposedStage], ray_cluster: RayCluster) -> Iterator[int]:
    """Run jobs anew, several at a time; yields their exit codes, in order.

    The nodes need the output directory, the images and the tracking database, all at the same place.
    """
    ray_cluster.check_paths([Path.cwd()])
    for job in jobs:  # of an earlier command with the same directory
        RunDirectory(job.directory).result.unlink(missing_ok=True)
    folder = str(Path.cwd())
    tasks = (
        (folder, job.name, _local_config(job), job.overrides, str(job.directory), str(job.config_dir or ""))
        for job in jobs
    )
    return ray_cluster.map(run_job, tasks, slots=ray_cluster.slots(), seconds_to_end=SECONDS_TO_END)


def _local_config(job: ComposedStage) -> str:
    """Return the configuration of a job that does not spread its own work."""
    config = job.config.copy()
    OmegaConf.update(config, "cluster", HERE, merge=False)
    return OmegaConf.to_yaml(config)


def run_job(
    folder: str,
    name: str,
    config: str,
    overrides: list[str],
    directory: str,
    config_dir: str,
    earlier: Collection[str] = (),
) -> int:
    """Run a job on a worker; returns its exit code. One whose worker was lost goes on with its run in MLflow.

    Args:
        folder: the directory that paths start from.
        name: of the stage.
        config: of the stage, as YAML.
        overrides: that led to it.
        directory: its output directory, without the result of an earlier command.
        config_dir: folder of the user's own options; empty: there is none.
        earlier: runs in MLflow that an earlier command has left in this directory.
    """
    from graftline.pipeline.cli.sweep import guarded

    os.chdir(folder)
    node = OmegaConf.create(config)
    own = Path(config_dir) if config_dir else None
    job = ComposedStage(name, node, overrides, Path(directory), own)  # type: ignore[arg-type]  # a mapping is a DictConfig
    if RunDirectory(job.directory).result.exists():
        return EXIT_DONE
    runs = instantiate(node.tracking).find_runs(job.directory) if job.directory.exists() else []
    if begun := [run_id for run_id in runs if run_id not in earlier]:
        job = job.with_value("train.resume", begun[0])
    return guarded(job)
