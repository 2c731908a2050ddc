"""The processes of a launch: they find each other at rank 0, hear of each training, and notice who is gone.

They talk through torch's store (https://docs.pytorch.org/docs/stable/distributed.html#torch.distributed.TCPStore),
which torchrun keeps, or else rank 0. Each process counts up a number there as long as it lives: torch itself waits half
an hour for a process that is gone before a training, and for a node that is gone during one.

All have a handler of SIGUSR1, by which Lightning would else queue a job of SLURM again.
"""

import atexit
import json
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil
import torch
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from graftline.console import console, say
from graftline.errors import UserError, first_line
from graftline.training.launch import Launch, main_address
from graftline.training.lost_process import LOST, LostProcessError, leave_group, lost_processes_named

SECONDS_TO_MEET = 60.0  # from the start of one process until all have come
SECONDS_BETWEEN_SIGNS = 2.0  # of life
SECONDS_UNTIL_LOST = 25.0  # without a sign
SECONDS_TO_END = 15.0  # that rank 0 may take to notice that another process is lost, and to leave the group
SECONDS_TO_HEAR = 10.0  # that rank 0 waits for the others to hear that all is done
SECONDS_OF_SLEEP = 0.1


@dataclass(frozen=True)
class RankProcess:
    """One of the processes: where it runs, and what has to be the same for all."""

    host: str
    pid: int
    python: str
    graftline: str
    local_world_size: int

    @classmethod
    def here(cls, launch: Launch) -> "RankProcess":
        """Return this process."""
        python, graftline = platform.python_version(), version("graftline")
        return cls(socket.gethostname(), os.getpid(), python, graftline, launch.local_world_size)

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended: it ran on this machine, and does not any more."""
        if self.host != socket.gethostname():
            return False
        with suppress(psutil.NoSuchProcess):
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        return True


@dataclass(frozen=True)
class Order:
    """What rank 0 tells the others to do next.

    Attributes:
        folder: where rank 0 runs.
        directory: output directory of the run that they train for; None: all is done.
    """

    folder: str
    directory: str | None


class _Ranks:
    """What rank 0 and the others have in common: the store, and signs of life.

    Args:
        launch: which of the processes this is.

    Raises:
        UserError: rank 0 cannot be reached.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._store = _connect(launch)
        self._trainings = 0  # that were begun
        self._is_in_group = False  # of torch
        self._is_over = threading.Event()
        self._store.set(_member(launch.rank), json.dumps(asdict(RankProcess.here(launch))))

    def _watch(self, others: list[int]) -> None:
        """Start to give signs of life, and to look for those of others."""
        thread = threading.Thread(target=self._give_and_look, args=(self._store.clone(), others), daemon=True)
        thread.start()
        atexit.register(self._stop_watching, thread)

    def _stop_watching(self, thread: threading.Thread) -> None:
        """End the thread: one that Python ends at its exit, while it is in the store's code, aborts the process."""
        self._is_over.set()
        thread.join(SECONDS_TO_HEAR)

    def _give_and_look(self, store: Store, others: list[int]) -> None:
        seen = dict.fromkeys(others, (b"", time.monotonic()))
        while True:
            try:
                store.add(_life(self.launch.rank), 1)
                for rank in others:
                    sign, now = _read(store, _life(rank)), time.monotonic()
                    if sign != seen[rank][0]:
                        seen[rank] = sign, now
                    elif now - seen[rank][1] > (SECONDS_UNTIL_LOST if sign else SECONDS_TO_MEET):
                        self._on_lost(rank)
                    if _read(store, _failure(self._trainings, rank)):
                        self._on_lost(rank)
            except RuntimeError:  # the store is gone, and whoever kept it
                if not self._is_over.is_set():
                    self._on_lost(0)
            if self._is_over.wait(SECONDS_BETWEEN_SIGNS):
                return

    def _on_lost(self, rank: int) -> None:
        """Act on the end of another process, in a thread of its own."""
        raise NotImplementedError

    @contextmanager
    def _group(self, device: str) -> Iterator[None]:
        """Form torch's process group for a training."""
        self._is_in_group = True
        try:
            with lost_processes_named(), self._torch_group(device):
                yield
        finally:
            self._is_in_group = False

    @contextmanager
    def _torch_group(self, device: str) -> Iterator[None]:
        is_cuda = device.startswith("cuda")
        if is_cuda:
            torch.cuda.set_device(device)
        torch.distributed.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=PrefixStore(f"group/{self._trainings}", self._store),
            rank=self.launch.rank,
            world_size=self.launch.world_size,
        )
        is_complete = False
        try:
            yield
            is_complete = True
        finally:
            leave_group(is_complete=is_complete)


class FirstRank(_Ranks):
    """Rank 0, which does all but the training alone.

    Args:
        launch: of rank 0.

    Raises:
        UserError: others have not come, or cannot train with it.
    """

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        self._lost: int | None = None
        self._has_noticed = False
        self._members = self._meet()
        signal.signal(signal.SIGUSR1, self._raise_lost)
        self._watch(list(range(1, launch.world_size)))

    def _meet(self) -> list[RankProcess]:
        """Wait for all processes and make sure that they can train together."""
        deadline, size = time.monotonic() + SECONDS_TO_MEET, self.launch.world_size
        missing = list(range(size))
        while missing := [rank for rank in missing if not self._store.check([_member(rank)])]:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self.launch.launcher} announced {size} processes, but rank {', '.join(map(str, missing))} did "
                    f"not come to rank 0 on {socket.gethostname()} within {SECONDS_TO_MEET:.0f} s: look whether all "
                    "nodes were started, and whether a firewall is between them."
                )
            self._store.add(_life(self.launch.rank), 1)  # those who have come see that it is here
            time.sleep(SECONDS_OF_SLEEP)
        members = [RankProcess(**json.loads(self._store.get(_member(rank)))) for rank in range(size)]
        for rank, member in enumerate(members):
            for name, words in (("python", "Python"), ("graftline", "graftline"), ("local_world_size", "--nproc")):
                if (theirs := getattr(member, name)) != (ours := getattr(members[0], name)):
                    raise UserError(
                        f"Rank {rank} on {member.host} has {words} {theirs}, rank 0 on {members[0].host} has {ours}: "
                        "all nodes of a training need the same."
                    )
        return members

    @contextmanager
    def training(self, directory: Path, device: str) -> Iterator[None]:
        """Let all processes train during the block.

        Args:
            directory: the run's output directory, which all of them see.
            device: torch's name of this process's device.

        Raises:
            LostProcessError: one of them is gone.
        """
        self._check()
        self._trainings += 1
        self._tell(Order(str(Path.cwd()), str(directory.absolute())))
        stop: BaseException | None = None
        try:
            with self._group(device):
                yield
        except (KeyboardInterrupt, LostProcessError) as error:  # torchrun stops all processes if one is gone
            stop = error
        if stop is not None:
            self._check()  # it knows which one
            raise stop

    def end(self) -> None:
        """Tell the others that all is done, and give them a moment to hear it: the store may end with this process."""
        self._trainings += 1
        with suppress(RuntimeError):
            self._tell(Order(str(Path.cwd()), None))
            deadline = time.monotonic() + SECONDS_TO_HEAR
            while self._store.add("heard", 0) < self.launch.world_size - 1 and time.monotonic() < deadline:
                if self._gone() is not None:
                    return
                time.sleep(SECONDS_OF_SLEEP)

    def _tell(self, order: Order) -> None:
        self._store.set(_order(self._trainings), json.dumps(asdict(order)))

    def _gone(self) -> int | None:
        here = (rank for rank, member in enumerate(self._members) if member.is_gone)
        return self._lost if self._lost is not None else next(here, None)

    def _check(self) -> None:
        """Raise a LostProcessError if another process is known to be gone."""
        if (rank := self._gone()) is not None:
            self._has_noticed = True
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which comes now: the run is to be marked first
            raise LostProcessError(f"Rank {rank} on {self._members[rank].host} has ended{LOST}")

    def _raise_lost(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        if not self._has_noticed:
            self._check()

    def _on_lost(self, rank: int) -> None:
        """Raise in the main thread; where that waits in a library and does not hear or get out, end the process."""
        if self._lost is not None:
            return
        self._lost = rank
        os.kill(os.getpid(), signal.SIGUSR1)
        if self._is_over.wait(SECONDS_TO_END):
            return
        if not self._has_noticed or self._is_in_group:  # to leave it may mean to wait for whom we have lost
            _end(f"Rank {rank} on {self._members[rank].host} has ended{LOST}")


class FurtherRank(_Ranks):
    """A process that trains along.

    Args:
        launch: of a rank above 0.

    Raises:
        UserError: rank 0 cannot be reached.
    """

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._watch([0])

    def next_order(self) -> Order:
        """Wait for what rank 0 tells the others to do next."""
        self._trainings += 1
        try:
            while not self._store.check([_order(self._trainings)]):
                time.sleep(SECONDS_OF_SLEEP)
            order = Order(**json.loads(self._store.get(_order(self._trainings))))
            if order.directory is None:
                self._store.add("heard", 1)
        except RuntimeError:
            self._on_lost(0)
        return order

    @contextmanager
    def training(self, device: str) -> Iterator[None]:
        """Train along during the block."""
        with self._group(device):
            try:
                yield
            except BaseException:
                self.say_failed()  # before it leaves the group, which rank 0 may have to leave first
                raise

    def say_failed(self) -> None:
        """Tell rank 0 that this process failed in the training that was begun last."""
        with suppress(RuntimeError):
            self._store.set(_failure(self._trainings, self.launch.rank), "1")

    def _on_lost(self, rank: int) -> NoReturn:
        """End: there is nothing that this process would have to put in order."""
        _end(f"Rank {rank} has ended{LOST}" if self.launch.local_rank == 0 else None)


def _connect(launch: Launch) -> Store:
    """Connect with torch's store, which rank 0 keeps unless torchrun does.

    Raises:
        UserError: it does not answer.
    """
    host, port = main_address(launch)
    seconds = timedelta(seconds=SECONDS_TO_MEET)
    try:
        store: Store
        store, _, _ = next(rendezvous("env://", launch.rank, launch.world_size, timeout=seconds))
    except (RuntimeError, ValueError) as error:
        if launch.rank == 0:  # which keeps the store, and waits for all
            raise UserError(
                f"{launch.launcher} announced {launch.world_size} processes, but not all of them came to rank 0 on "
                f"{socket.gethostname()} at {host}:{port} within {SECONDS_TO_MEET:.0f} s ({first_line(error)}): look "
                "whether all nodes were started, and whether a firewall is between them."
            ) from error
        raise UserError(
            f"Rank {launch.rank} on {socket.gethostname()} could not reach rank 0 at {host}:{port} within "
            f"{SECONDS_TO_MEET:.0f} s ({first_line(error)}): look whether rank 0 was started, and whether a firewall "
            "is between the nodes; MASTER_ADDR and MASTER_PORT choose another address."
        ) from error
    return store


def _read(store: Store, key: str) -> bytes:
    """Return a value, empty if there is none yet: the store itself would wait for it."""
    return bytes(store.get(key)) if store.check([key]) else b""


def _end(sentence: str | None) -> NoReturn:
    if sentence is not None:
        console.quiet = False
        say(sentence)
    os._exit(1)  # not only this thread


def _member(rank: int) -> str:
    return f"member/{rank}"


def _life(rank: int) -> str:
    return f"life/{rank}"


def _order(number: int) -> str:
    return f"order/{number}"


def _failure(number: int, rank: int) -> str:
    return f"failure/{number}/{rank}"
