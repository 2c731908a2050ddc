"""Where independent work runs: here, or spread over the processes and machines of a Ray cluster.

Ray is an extra, and imported only where it is used: ``pip install graftline[ray]``. Its tasks are done again elsewhere
where a worker or a machine is lost (https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html).
"""

import importlib.util
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from graftline.errors import UserError
from graftline.execution import CORES
from graftline.ray_connection import (
    SECONDS_TO_IMPORT,
    ask_nodes,
    check_seen,
    find_apart,
    get_result,
    knock,
    living_nodes,
    look_at_nodes,
    start,
    warn_of_variables,
)

if TYPE_CHECKING:
    import ray

R = TypeVar("R")

SECONDS_BETWEEN_LOOKS = 10.0  # at which nodes there are, while no task ends
SECONDS_WITHOUT_NODE = 300.0  # that has what a task needs: one that starts again is back by then
NOT_OURS = "not ours"  # in place of an address: a Ray that others have connected this process with, or none
SECONDS_TO_END = 20.0  # that a task which is asked to stop may take, as a run to say so to MLflow
AHEAD = 3  # tasks per worker that are under way: one runs, the others wait beside it, or for their turn to be asked for
MOST_RETRIES = 5  # of a task whose worker or node was lost: what ends each worker would else be done again for ever

_own_address: str | None = NOT_OURS  # of the cluster that we have connected this process with


@dataclass(frozen=True)
class Slots:
    """How many tasks run at a time, and what each of them gets."""

    number: int
    cores: int
    gpus: float

    @classmethod
    def on(cls, nodes: Sequence[Mapping[str, float]], number: int | None = None) -> "Slots":
        """Return those of trainings: each gets as many cores as still let all of them run at a time.

        Args:
            nodes: what each living node has, by Ray's names: ``CPU``, ``GPU``.
            number: of trainings at a time; None: as many as GPUs, else as nodes. What is without cores does not count.

        Raises:
            UserError: no node has a core.
        """
        nodes = [node for node in nodes if node.get("CPU", 0) >= 1]
        if not nodes:
            raise UserError("No node of the Ray cluster has a core: look at ray status.")
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        number = number or gpus or len(nodes)
        smallest = cls(number, 1, min(1.0, gpus / number))
        wanted = min(number, smallest.count_places(nodes))
        most_cores = max(int(node["CPU"]) for node in nodes)
        larger = (cls(number, cores, smallest.gpus) for cores in range(most_cores, 0, -1))
        return next(slots for slots in larger if slots.count_places(nodes) >= wanted)

    def count_places(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return how many of the tasks some nodes can run at a time; no task has parts of several GPUs."""
        by_cores = [int(node.get("CPU", 0)) // self.cores for node in nodes]
        if self.gpus == 0:
            return sum(by_cores)
        per_gpu = int(1 / self.gpus + 1e-6)
        return sum(min(count, int(node.get("GPU", 0)) * per_gpu) for count, node in zip(by_cores, nodes, strict=True))

    @property
    def needs(self) -> str:
        """What a node needs to have for one of the tasks, in words."""
        cores = "a core" if self.cores == 1 else f"{self.cores} cores"
        return f"{cores} and a GPU" if self.gpus > 0 else cores

    @property
    def options(self) -> dict[str, Any]:
        """What Ray is to give each of them."""
        environment = {"env_vars": {CORES: str(self.cores)}}
        return {"num_cpus": self.cores, "num_gpus": self.gpus, "runtime_env": environment}


@dataclass(frozen=True)
class NoCluster:
    """Do all work in this process, with the threads that it has (Hydra target of conf/cluster/none.yaml)."""

    def check(self) -> None:
        """Return: there is nothing that could be missing."""


@dataclass(frozen=True)
class RayCluster:
    """Spread work over a Ray cluster (Hydra target of conf/cluster/ray.yaml).

    Attributes:
        address: of the cluster, ``HOST:PORT`` or ``auto``; None: a Ray of this machine's own, for as long as we run.
        num_workers: tasks at a time, each on one core; None: as many as the cluster has cores. Of those that have a GPU
            each to themselves, no more than it has GPUs.

    Raises:
        UserError: a number that cannot be.
    """

    address: str | None = None
    num_workers: int | None = None

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise UserError(f"RayCluster.num_workers is {self.num_workers}, it must be at least 1.")

    def check(self) -> None:
        """Make sure that Ray is installed and the cluster answers, before anything slow.

        Raises:
            UserError: it is not, or does not.
        """
        if importlib.util.find_spec("ray") is None:
            raise UserError("Ray is not installed: pip install graftline[ray].")
        self.connect()

    def connect(self) -> None:
        """Connect with the cluster, once per process; with another one than before, in its place.

        Raises:
            UserError: it does not answer, has other versions than we have, or its nodes have no graftline.
        """
        global _own_address
        os.environ.setdefault("RAY_task_oom_retries", str(MOST_RETRIES))  # Ray counts those apart, and reads it once
        import ray

        if ray.is_initialized():
            if _own_address in (NOT_OURS, self.address):
                return
            ray.shutdown()  # that of an earlier command of this process
        if self.address is not None and self.address != "auto":
            knock(self.address)
        _own_address = NOT_OURS
        start(self.address, self.num_workers)
        try:
            warn_of_variables(look_at_nodes())
        except BaseException:
            ray.shutdown()  # or the next command would take it as it is
            raise
        _own_address = self.address

    @property
    def workers(self) -> int:
        """How many tasks run at a time."""
        import ray

        self.connect()
        cores = int(ray.cluster_resources().get("CPU", 1))
        return cores if self.num_workers is None else min(cores, self.num_workers)

    def slots(self) -> Slots:
        """Return how many runs of their own take place at a time: as many as GPUs, else as nodes, if it is not given.

        A training uses all cores that it gets, or one GPU.

        Raises:
            UserError: no node has a core.
        """
        return Slots.on(self.resources(), self.num_workers)

    def gpu_slots(self) -> Slots | None:
        """Return how many tasks run at a time that have a GPU each to themselves; None: no node has one."""
        nodes = self.resources()
        gpus = sum(int(node.get("GPU", 0)) for node in nodes if node.get("CPU", 0) >= 1)
        return Slots.on(nodes, min(gpus, self.num_workers or gpus)) if gpus > 0 else None

    def resources(self) -> list[Mapping[str, float]]:
        """Return what each living node has, by Ray's names: ``CPU``, ``GPU``."""
        self.connect()
        return [node["Resources"] for node in living_nodes()]

    def share(self, value: Any) -> Any:
        """Send a value to the cluster, for all tasks that are given what this returns."""
        import ray

        self.connect()
        return ray.put(value)

    def map(
        self,
        function: Callable[..., R],
        items: Iterable[tuple[Any, ...]],
        slots: Slots | None = None,
        place: Callable[..., Any] | None = None,
        ahead: int | None = None,
    ) -> Iterator[R]:
        """Yield what a function of one of our modules returns for each tuple of arguments, in order.

        A slow task keeps no other from running: of tasks of one core, a few items ahead of what was asked for are
        taken; of others, whose results are small, any number. A task whose worker or node is lost is done again
        elsewhere, `MOST_RETRIES` times at most; what is not asked for any more is cancelled.

        Args:
            function: of one of our modules, or of one that the workers have.
            items: its arguments.
            slots: how many tasks run at a time, and on what; None: ``workers``, each on one core.
            place: of the same arguments, tells Ray on which node a task is to run, as `Homes` does; None: on any.
            ahead: how many items are taken ahead of what was asked for, where ``place`` is given.

        Raises:
            UserError: a task raised it, or was lost for good, or no node can run it any more; other errors are raised
                as they are.
        """
        with closing(self._ended(function, items, slots, None, place, ahead, in_order=True)) as ended:
            for _, get in ended:
                yield get()

    def as_completed(
        self,
        function: Callable[..., R],
        items: Iterable[tuple[Any, ...]],
        slots: Slots | None = None,
        stop: Callable[[], None] | None = None,
    ) -> Generator[tuple[int, Callable[[], R]], None, None]:
        """As `map`, but yield the number of each item as soon as its task has ended, with what gets the result.

        What a task raises, or that it was lost for good, is raised there: the others go on.

        Args:
            function: as there, like the two that follow.
            items: as there.
            slots: as there.
            stop: asks tasks to end by themselves before they are cancelled; None: nobody can.

        Raises:
            UserError: no node can run a task any more.
        """
        return self._ended(function, items, slots, stop, None, None, in_order=False)

    def _ended(
        self,
        function: Callable[..., R],
        items: Iterable[tuple[Any, ...]],
        slots: Slots | None,
        stop: Callable[[], None] | None,
        place: Callable[..., Any] | None,
        ahead: int | None,
        *,
        in_order: bool,
    ) -> Generator[tuple[int, Callable[[], R]], None, None]:
        """Run tasks; yields the number of each that has ended with what gets its result, in order or as they end."""
        import ray

        self.connect()
        options: dict[str, Any] = {"num_cpus": 1} if slots is None else slots.options
        task: Any = ray.remote(**options, max_retries=MOST_RETRIES)(function)
        waiting, begun, running = enumerate(items), dict["ray.ObjectRef", int](), list["ray.ObjectRef"]()
        most_running, most_begun, look_at = *self._limits(slots, ahead), time.monotonic() + SECONDS_BETWEEN_LOOKS
        try:
            while True:
                if time.monotonic() >= look_at:  # nodes may have come or gone
                    most_running, most_begun = self._limits(slots, ahead)
                    look_at = time.monotonic() + SECONDS_BETWEEN_LOOKS
                while len(running) < most_running and len(begun) < most_begun:
                    if (item := next(waiting, None)) is None:
                        break
                    chosen = task if place is None else task.options(scheduling_strategy=place(*item[1]))
                    result = chosen.remote(*item[1])
                    begun[result] = item[0]
                    running.append(result)
                if not begun:
                    return
                asked_for = islice(begun, 1) if in_order else begun
                if (ended := next((one for one in asked_for if one not in running), None)) is None:
                    running = wait_for_one(running, slots or Slots(1, 1, 0.0))
                else:
                    yield begun[ended], partial(get_result, ended)
                    del begun[ended]
        finally:
            if running and stop is not None:  # Ray, asked to interrupt a task that ends in the same moment, aborts us
                stop()
                _, running = ray.wait(running, num_returns=len(running), timeout=SECONDS_TO_END)
            for left in running:
                ray.cancel(left, force=True)

    def _limits(self, slots: Slots | None, ahead: int | None) -> tuple[int, float]:
        """Return how many tasks may be under way, and with those that have ended; results of trainings are small.

        More tasks of one core are under way than run, unless fewer are to run than could.
        """
        import ray

        if slots is not None:
            return slots.number, math.inf
        if ahead is not None:
            return ahead, ahead
        cores, workers = int(ray.cluster_resources().get("CPU", 1)), self.workers
        return AHEAD * cores if workers == cores else workers, AHEAD * workers

    def check_paths(self, paths: Sequence[Path]) -> None:
        """Make sure that each node sees some files.

        Raises:
            UserError: one does not.
        """
        self.connect()
        check_seen(paths)

    def ask_nodes(self, function: Callable[..., R], *arguments: Any) -> list[tuple[str, R]]:
        """Return the host of each node, and what a function of one of our modules returns there.

        It is asked in a process that has what a training gets, and trains later.

        Raises:
            UserError: a node does not answer; else what the function raises.
        """
        options = {name: value for name, value in self.slots().options.items() if name == "runtime_env"}
        return ask_nodes(function, *arguments, seconds=SECONDS_TO_IMPORT, options=options)

    def find_apart(self, folder: Path) -> list[str]:
        """Return the hosts of the nodes that do not see what is written to a folder here."""
        self.connect()
        return find_apart(folder)

    def check_shared(self, folder: Path, paths: Sequence[Path], *, why: str = "") -> None:
        """Make sure that each node sees what is written to a folder here, and some files.

        Raises:
            UserError: one does not; it ends in ``why``.
        """
        for host in self.find_apart(folder):
            raise UserError(
                f"Node {host} of the Ray cluster does not see what is written to {folder} here: all nodes need the "
                f"same output directory, on a file system that they share{why}."
            )
        self.check_paths(paths)


class Homes:
    """Tells which node runs the tasks that read the same, by turns and by the nodes' cores."""

    def __init__(self) -> None:
        self._homes: dict[str, str] = {}
        self._tasks = Counter[str]()

    def of(self, what: str) -> Any:
        """Return how Ray is to choose the node for a task: the one that has read the same, while it lives."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        cores = {one["NodeID"]: one["Resources"].get("CPU", 0) for one in living_nodes()}
        if self._homes.get(what) not in cores:
            able = [node for node, count in cores.items() if count >= 1]
            if not able:
                return "DEFAULT"
            self._homes[what] = min(able, key=lambda node: self._tasks[node] / cores[node])
        self._tasks[self._homes[what]] += 1
        return NodeAffinitySchedulingStrategy(self._homes[what], soft=True)


def wait_for_one(running: list["ray.ObjectRef"], slots: Slots) -> list["ray.ObjectRef"]:
    """Wait until one of some tasks has ended; returns the others.

    Raises:
        UserError: for `SECONDS_WITHOUT_NODE` there is no node that can run one of them: Ray itself would wait for ever.
    """
    import ray

    lacking = 0.0
    while True:
        start = time.monotonic()
        done, others = ray.wait(running, timeout=SECONDS_BETWEEN_LOOKS)
        if done:
            return list(others)
        is_there = slots.count_places([node["Resources"] for node in living_nodes()]) > 0
        lacking = 0.0 if is_there else lacking + time.monotonic() - start
        if lacking >= SECONDS_WITHOUT_NODE:
            raise UserError(
                f"For {lacking:.0f} s no node of the Ray cluster has had {slots.needs}, as each task needs: look at "
                "ray status, and run the same command again."
            )
