"""The runs of a sweep, spread over a Ray cluster: each is a task, which goes on elsewhere where its worker is lost."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from graftline.pipeline.cli.composed_stage import ComposedStage
from graftline.pipeline.cli.errors import EXIT_DONE
from graftline.ray_cluster import RayCluster

HERE = {"_target_": "graftline.ray_cluster.NoCluster"}  # of the runs themselves, which are spread already
SECONDS_TO_END = 20.0  # that a run which is interrupted may take to say so to MLflow


def ray_cluster_of(job: ComposedStage) -> RayCluster | None:
    """Return the cluster over which runs are to be spread; None: they run here."""
    cluster = instantiate(job.config.cluster) if "cluster" in job.config and job.name == "train" else None
    return cluster if isinstance(cluster, RayCluster) else None


def run_spread(jobs: Sequence[ComposedStage], ray_cluster: RayCluster) -> Iterator[int]:
    """Run jobs, several at a time; yields their exit codes, in order.

    The nodes need the output directory, the images and the tracking database, all at the same place.
    """
    ray_cluster.check_paths([Path.cwd()])
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


def run_job(folder: str, name: str, config: str, overrides: list[str], directory: str, config_dir: str) -> int:
    """Run a job on a worker; returns its exit code. One whose worker was lost goes on with its run in MLflow."""
    from graftline.pipeline.cli.sweep import guarded

    os.chdir(folder)
    node = OmegaConf.create(config)
    own = Path(config_dir) if config_dir else None
    job = ComposedStage(name, node, overrides, Path(directory), own)  # type: ignore[arg-type]  # a mapping is a DictConfig
    if (job.directory / "result.json").exists():
        return EXIT_DONE
    tracking = instantiate(node.tracking)
    if job.directory.exists() and (run_id := tracking.find_run(job.directory)) is not None:
        job = job.with_value("train.resume", run_id)
    return guarded(job)
