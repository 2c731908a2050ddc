"""The trainings of an ensemble's members: one after the other, or several at a time on a Ray cluster."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graftline.console import logged, say, show_log
from graftline.data.references import file_of
from graftline.files import write_json
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.runs.elsewhere import (
    check_weights,
    discard_result_of_others,
    find_begun,
    find_nodes_apart,
    read_files,
    work_in,
)
from graftline.pipeline.searching.winner import Winner
from graftline.ray_board import Reporter, shown
from graftline.ray_cluster import NoCluster, RayCluster
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True)
class Member:
    """A member that is to be trained.

    Attributes:
        winner: its network and all it has in common with the others.
        folder: below the ensemble's output directory, that becomes its own.
        seed: of its head, and of the order of images.
        fold: of the training images that it does without, such as 2/5; None: it has all.
    """

    winner: Winner
    folder: str
    seed: int
    fold: str | None

    @property
    def directory(self) -> Path:
        """Its output directory."""
        return self.winner.directory / self.folder

    @property
    def tracking(self) -> Tracking:
        """Where its run is, below that of the ensemble."""
        return replace(self.winner.search.tracking, parent_run_id=self.winner.parent_run_id)

    def __str__(self) -> str:
        without = "" if self.fold is None else f", without part {self.fold} of the training images"
        return f"{self.winner.backbone.network_name}, seed {self.seed}{without}"


def train_members(members: Sequence[Member], cluster: NoCluster | RayCluster, *, resume: bool = False) -> list[str]:
    """Train members, and return their directories, or the runs of those whose models are on other machines.

    Args:
        members: to be trained.
        cluster: where.
        resume: go on with the members of an ensemble that was interrupted; those that are finished stay as they are.

    Raises:
        UserError: what a member's training raises; those that have not ended are interrupted.
    """
    if not resume:
        for member in members:  # of an earlier ensemble in the same directory
            RunDirectory(member.directory).result.unlink(missing_ok=True)
            shutil.rmtree(RunDirectory(member.directory).bundle, ignore_errors=True)
    if isinstance(cluster, RayCluster):
        _train_spread(members, cluster)
    else:
        for number, member in enumerate(members, 1):
            say(f"\nMember {number} of {len(members)}: {member}.")
            _train(member)
    return [_reference(RunDirectory(member.directory)) for member in members]


def _train(member: Member) -> None:
    """Train a member, go on with its run where one was begun, or leave it as it is where it is finished."""
    files = RunDirectory(member.directory)
    if files.result.exists():
        say("It is finished: its model was saved before.")
        return
    run_id = find_begun(files.path, member.tracking) if files.path.exists() else None
    member.winner.train_member(member.folder, member.seed, member.fold, run_id)


def _train_spread(members: Sequence[Member], cluster: RayCluster) -> None:
    """Train members on a cluster, whose nodes need the images, and the output directory or a tracking server."""
    first = members[0].winner
    image = file_of(first.version.samples("train").paths[0])
    find_nodes_apart(cluster, first.directory, [] if image is None else [image], first.search.tracking)
    check_weights(cluster, [first.backbone])
    own = RunDirectory(first.directory)
    needed = [own.config, own.overrides, own.config_dir, *first.version.files]
    files = cluster.share(read_files(needed))  # nodes that share the output directory alone lack the dataset version
    slots = cluster.slots()
    say(f"\nMembers are spread over Ray, {slots.number} at a time; each says what it does in its own log.txt.")
    names = [f"Member {number} of {len(members)}" for number in range(1, len(members) + 1)]
    left = [number for number, one in enumerate(members) if not RunDirectory(one.directory).result.exists()]
    with shown("Members", names) as board:
        for number, member in enumerate(members):
            if number not in left:
                board.end(number)
                say(f"{names[number]}: {member}: it was finished before.")
        place = str(Path.cwd())
        tasks = ((place, _without_cluster(members[number]), board.reporter(number), files) for number in left)
        ended = cluster.as_completed(train_on_worker, tasks, slots=slots, stop=board.stop)
        with closing(ended):
            for task, get in ended:
                number = left[task]
                member = members[number]
                name = f"{names[number]}: {member}"
                try:
                    result = get()
                except Exception:
                    say(f"{name}: failed, and the others are interrupted.")
                    raise
                if not (kept := RunDirectory(member.directory).result).exists():
                    write_json(kept, result)
                board.end(number)
                say(f"{name}: {os.path.relpath(member.directory)}{_score(result)}")


def _score(result: Mapping[str, Any]) -> str:
    """Return the test accuracy of a result in words, nothing where it has none."""
    from graftline.evaluation.metrics import format_score  # scikit-learn takes a second

    accuracy = result["metrics"].get("accuracy")
    return "" if accuracy is None else f", test accuracy {format_score('accuracy', accuracy['value'])}"


def _reference(files: RunDirectory) -> str:
    """Return the directory of a member, or its run where its bundle is on another machine."""
    return str(files.path if files.bundle.is_dir() else files.read_result()["run_id"])


def _without_cluster(member: Member) -> Member:
    """Return a member that does not spread its own work."""
    winner = member.winner
    return replace(member, winner=replace(winner, search=replace(winner.search, cluster=NoCluster())))


def train_on_worker(place: str, member: Member, reporter: Reporter, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Train a member on a worker, and return its result; one whose worker was lost goes on with its run in MLflow.

    Args:
        place: the directory that paths start from.
        member: which one.
        reporter: of what it is at.
        files: that it needs, of the machine where the command was typed.
    """
    work_in(place, files)
    show_log()
    member.directory.mkdir(parents=True, exist_ok=True)
    with logged(member.directory / "log.txt"), reporter.telling():
        discard_result_of_others(RunDirectory(member.directory), member.tracking)
        _train(member)
    return RunDirectory(member.directory).read_result()
