"""Runs on nodes of a Ray cluster that may not have this machine's files, which are sent.

What a run leaves comes back: its model by way of the tracking server, under the run's id, its ``result.json`` by Ray.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.console import warn
from graftline.errors import UserError
from graftline.files import atomic_file
from graftline.pipeline.runs.directory import RunDirectory
from graftline.ray_cluster import RayCluster
from graftline.tracking.tracking import Tracking

if TYPE_CHECKING:
    from graftline.backbones.backbone import Backbone  # timm and torch take seconds


def find_nodes_apart(ray_cluster: RayCluster, directory: Path, images: Sequence[Path], tracking: Tracking) -> bool:
    """Return whether some nodes do not see what is written to an output directory here, and say so.

    Args:
        ray_cluster: its nodes all need the images, and a tracking server where they do not share the directory.
        directory: in which runs write theirs.
        images: some of their files.
        tracking: of the runs.

    Raises:
        UserError: a node lacks one of these.
    """
    if not tracking.is_server:
        ray_cluster.check_shared(directory, [Path.cwd(), *images], why=", or tracking=server")
        return False
    ray_cluster.check_paths(images)
    if apart := ray_cluster.find_apart(directory):
        more = "" if len(apart) == 1 else f", nor do {len(apart) - 1} more"
        warn(
            f"Node {apart[0]} of the Ray cluster does not see what is written to {directory} here{more}: what runs "
            "leave there stays there, and their models come from the tracking server, by the run's id."
        )
    return bool(apart)


def check_weights(ray_cluster: RayCluster, backbones: Sequence["Backbone"]) -> None:
    """Make sure that each node has the weights of the backbones of some runs, or can fetch them.

    Raises:
        UserError: one does not.
    """
    for backbone in backbones:
        try:
            here = backbone.check()
        except UserError:  # each run will say so
            continue
        if here is None:  # random weights
            continue
        for host, is_there in ray_cluster.ask_nodes(has_weights, str(Path.cwd()), backbone):
            if not is_there:
                raise UserError(
                    f"Node {host} of the Ray cluster has no weights for '{backbone.name}', which are {here.path} here: "
                    "put them there, too, or let Backbone.weights_dir be on a file system that all nodes share."
                )


def has_weights(folder: str, backbone: "Backbone") -> bool:
    """Tell whether this machine has a backbone's weights, or can fetch them; folder: that paths start from."""
    work_in(folder, {})
    try:
        backbone.check()
    except UserError:
        return False
    return True


def read_files(files: Sequence[Path]) -> dict[str, bytes]:
    """Return the contents of files that are to be sent, by their absolute paths."""
    return {str(file.absolute()): file.read_bytes() for file in files if file.exists()}


def work_in(folder: str, files: Mapping[str, bytes]) -> None:
    """Make a folder the one that paths start from, on a machine that may not have it, nor some files.

    Args:
        folder: of the machine where the command was typed.
        files: contents by their absolute paths; what is there stays as it is.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name, content in files.items():
        if not (file := Path(name)).exists():
            with atomic_file(file) as temporary:
                temporary.touch(mode=0o600)  # a configuration may have a password
                temporary.write_bytes(content)


def discard_result_of_others(files: RunDirectory, tracking: Tracking) -> None:
    """Remove a result of an earlier command, on a machine whose files that of this group could not see."""
    may_be_old = files.result.exists() and tracking.parent_run_id is not None
    if may_be_old and files.last_run_id not in tracking.find_runs(files.path):
        files.result.unlink()


def find_begun(directory: Path, tracking: Tracking, earlier: Collection[str] = ()) -> str | None:
    """Return the run that an earlier worker has begun in an output directory, to go on with; None where there is none.

    One of the group whose files are not here, as they went with its node, is marked as failed.

    Args:
        directory: of the run.
        tracking: of the run, with the group that it belongs to, if there is one.
        earlier: runs that are not meant.
    """
    if tracking.parent_run_id is None and not directory.exists():
        return None
    begun = [run_id for run_id in tracking.find_runs(directory) if run_id not in earlier]
    if (last := RunDirectory(directory).last_run_id) in begun:
        return last
    if tracking.parent_run_id is not None:
        for run_id in begun:
            tracking.mark_lost(run_id)
    return None
