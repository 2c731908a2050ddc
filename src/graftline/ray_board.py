"""What several runs on a Ray cluster are at, shown and logged where the command was typed, and how they are stopped.

Each run tells an actor (https://docs.ray.io/en/latest/ray-core/actors.html) on this node, which is asked now and then,
and asks it whether it is to stop.
"""

import _thread
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.progress import Progress, TaskID

from graftline.console import WorkReport, progress, reported, say
from graftline.ray_connection import living_nodes

SECONDS_BETWEEN_REPORTS = 0.5


class Reports:
    """The reports that have come in and were not asked for yet, by the number of the run; runs as an actor."""

    def __init__(self) -> None:
        self._reports: list[tuple[int, str | WorkReport]] = []
        self._is_over = False

    def put(self, number: int, report: str | WorkReport) -> None:
        """Take what a run is at, or the node on which it begins."""
        self._reports.append((number, report))

    def take(self) -> list[tuple[int, str | WorkReport]]:
        """Return the reports, in order, and forget them."""
        taken, self._reports = self._reports, []
        return taken

    def stop(self) -> None:
        """Keep in mind that all runs are to end."""
        self._is_over = True

    def is_over(self) -> bool:
        """Tell whether the runs are to end."""
        return self._is_over


@dataclass(frozen=True)
class Reporter:
    """Tells of one run; it is sent to its worker.

    Attributes:
        reports: the actor.
        number: of the run.
    """

    reports: Any
    number: int

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell that the run begins on this node, and during the block what it is at; interrupt it if it is to stop."""
        import ray

        done = threading.Event()
        threading.Thread(target=self._listen, args=(done,), daemon=True).start()
        with suppress(ray.exceptions.RayError):
            ray.get(self.reports.put.remote(self.number, socket.gethostname()))  # or a short run would end before
        last, told_at = "", 0.0

        def tell(report: WorkReport) -> None:
            nonlocal last, told_at
            is_news = report.work != last or report.done == report.total
            if is_news or time.monotonic() - told_at >= SECONDS_BETWEEN_REPORTS:
                self.reports.put.remote(self.number, report)
                last, told_at = report.work, time.monotonic()

        try:
            with reported(tell):
                yield
        finally:
            done.set()

    def _listen(self, done: threading.Event) -> None:
        """Interrupt this process once the runs are to stop."""
        import ray

        while not done.wait(SECONDS_BETWEEN_REPORTS):
            try:
                is_over = ray.get(self.reports.is_over.remote())
            except ray.exceptions.RayError:  # the command has ended, and Ray ends its tasks
                return
            if is_over and not done.is_set():
                _thread.interrupt_main()
                return


class Board:
    """Shows a line for each run that is going, and says which begin, are lost and go on; use `shown`.

    Args:
        bar: counts the runs that have ended.
        names: of the runs.
    """

    def __init__(self, bar: Progress, names: Sequence[str]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._reports: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Reports).remote()
        self._bar, self._names = bar, names
        self._lines: dict[int, TaskID] = {}  # of the runs that have begun
        self._ended: set[int] = set()
        self._lock = threading.Lock()  # of what the main thread and the one that follows both change
        self._best: dict[int, str] = {}
        self._nodes = _hosts()

    def reporter(self, number: int) -> Reporter:
        """Return what tells of a run on its worker."""
        return Reporter(self._reports, number)

    def stop(self) -> None:
        """Ask all runs to end."""
        self._reports.stop.remote()

    def end(self, number: int) -> None:
        """Show what a run has told, take its line away, and count it."""
        import ray

        with suppress(ray.exceptions.RayError):
            self.update()
        with self._lock:
            self._ended.add(number)
            if (line := self._lines.get(number)) is not None:
                self._bar.update(line, visible=False)
            self._bar.advance(self._bar.task_ids[0])

    def update(self) -> None:
        """Show what has come in, and say which nodes have gone."""
        with self._lock:
            self._update()

    def _update(self) -> None:
        import ray

        for number, report in ray.get(self._reports.take.remote()):
            if isinstance(report, str):
                self._begin(number, report)
            elif number not in self._ended and (line := self._lines.get(number)) is not None:
                self._best[number] = report.best or self._best.get(number, "")
                words = ", ".join(part for part in (self._names[number], report.work, self._best[number]) if part)
                self._bar.update(line, description=escape(words), completed=report.done, total=report.total)
        nodes = _hosts()
        for gone in self._nodes.keys() - nodes.keys():
            say(f"Node {self._nodes[gone]} has left the Ray cluster: what it was at is done elsewhere.")
        self._nodes = nodes

    def _begin(self, number: int, host: str) -> None:
        name = self._names[number]
        if number in self._lines:
            say(f"{name}: is on node {host} now, as its worker was lost.")
        elif number not in self._ended:
            say(f"{name}: begins on node {host}.")
            self._lines[number] = self._bar.add_task(escape(name), total=1)


def _hosts() -> dict[str, str]:
    """Return the names of the machines of living nodes, by the node's id."""
    return {node["NodeID"]: node["NodeManagerHostname"] for node in living_nodes()}


@contextmanager
def shown(title: str, names: Sequence[str]) -> Iterator[Board]:
    """Show runs on the cluster that this process is connected with, in one progress display.

    Args:
        title: of all of them, such as "Runs".
        names: of each.
    """
    import ray

    done = threading.Event()
    with progress(title, total=len(names)) as bar:
        board = Board(bar, names)

        def follow() -> None:
            while not done.wait(SECONDS_BETWEEN_REPORTS):
                try:
                    board.update()
                except ray.exceptions.RayError:  # the runs go on without
                    return

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield board
        finally:
            done.set()
            thread.join(10 * SECONDS_BETWEEN_REPORTS)
            with suppress(ray.exceptions.RayError):
                board.update()  # what has come in since
