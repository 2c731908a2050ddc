"""Work through tasks in processes of their own: what is done for each image in Python holds Python's lock."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from graftline.errors import UserError
from graftline.execution import available_cores
from graftline.processes import end_with_parent

Task = TypeVar("Task")
Answer = TypeVar("Answer")


def in_processes(function: Callable[[Task], Answer], tasks: Sequence[Task], workers: int) -> Iterator[Answer]:
    """Yield the function's answers, in the order of the tasks; one after the other here, where one process is enough.

    Args:
        function: of a module, so that other processes find it.
        tasks: each for one process at a time.
        workers: processes; 0 for one per core.

    Raises:
        UserError: a process was killed.
    """
    count = min(len(tasks), workers or available_cores())
    if count <= 1:
        yield from map(function, tasks)
        return
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)  # a fork of this process could wait for a lock of its threads
    context.set_forkserver_preload([function.__module__])
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start)
    try:
        yield from pool.map(function, tasks)
    except BrokenProcessPool as error:
        raise UserError(
            "A process that works on shards was killed, perhaps for want of memory: run the same command again, which "
            "goes on where this one was, with fewer workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the process that we work for says it
    end_with_parent()
