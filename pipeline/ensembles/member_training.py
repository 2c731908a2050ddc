"""The trainings of an ensemble's members: one after the other, or several at a time on a Ray cluster."""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from graftline.console import logged, progress, say, show_log
from graftline.data.references import file_of
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.searching.winner import Winner
from graftline.ray_cluster import NoCluster, RayCluster

SECONDS_TO_END = 20.0  # that a member which is interrupted may take to say so to MLflow


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

    def __str__(self) -> str:
        without = "" if self.fold is None else f", without part {self.fold} of the training images"
        return f"{self.winner.backbone.network_name}, seed {self.seed}{without}"


def train_members(members: Sequence[Member], cluster: NoCluster | RayCluster, *, resume: bool = False) -> list[str]:
    """Train members, and return their directories.

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
    if isinstance(cluster, RayCluster):
        _train_spread(members, cluster)
    else:
        for number, member in enumerate(members, 1):
            say(f"\nMember {number} of {len(members)}: {member}.")
            _train(member)
    return [str(member.directory) for member in members]


def _train(member: Member) -> None:
    """Train a member, go on with its run where one was begun, or leave it as it is where it is finished."""
    files = RunDirectory(member.directory)
    if files.result.exists():
        say("It is finished: its bundle was saved before.")
        return
    run_id = None
    if files.path.exists():
        tracking = replace(member.winner.search.tracking, parent_run_id=member.winner.parent_run_id)
        run_id = next(iter(tracking.find_runs(files.path)), None)
    member.winner.train_member(member.folder, member.seed, member.fold, run_id)


def _train_spread(members: Sequence[Member], cluster: RayCluster) -> None:
    """Train members on a cluster, whose nodes need the output directory, the images and the tracking database."""
    first = members[0].winner
    image = file_of(first.version.samples("train").paths[0])
    cluster.check_shared(first.directory, [Path.cwd(), *([] if image is None else [image])])
    slots = cluster.slots()
    say(f"\nMembers are spread over Ray, {slots.number} at a time; each says what it does in its own log.txt.")
    tasks = ((str(Path.cwd()), _without_cluster(member)) for member in members)
    ended = cluster.as_completed(train_on_worker, tasks, slots=slots, seconds_to_end=SECONDS_TO_END)
    with progress("Members", total=len(members)) as bar, closing(ended):
        for number, get in ended:
            member = members[number]
            name = f"Member {number + 1} of {len(members)}: {member}"
            try:
                get()
            except Exception:
                say(f"{name}: failed, and the others are interrupted.")
                raise
            say(f"{name}: {os.path.relpath(member.directory)}")
            bar.advance(bar.task_ids[0])


def _without_cluster(member: Member) -> Member:
    """Return a member that does not spread its own work."""
    winner = member.winner
    return replace(member, winner=replace(winner, search=replace(winner.search, cluster=NoCluster())))


def train_on_worker(place: str, member: Member) -> None:
    """Train a member on a worker; one whose worker was lost goes on with its run in MLflow.

    Args:
        place: the directory that paths start from.
        member: which one.
    """
    os.chdir(place)
    show_log()
    member.directory.mkdir(parents=True, exist_ok=True)
    with logged(member.directory / "log.txt"):
        _train(member)
