"""The end of processes: at SIGTERM as at Ctrl-C; those that work for another one end with it, however it ended."""

import multiprocessing
import os
import threading
import time
from types import FrameType

SECONDS = 1.0  # between two looks whether the parent is still there


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which ends a run as Ctrl-C does."""


def terminate(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
    """Handle SIGTERM.

    Raises:
        Terminated: always.
    """
    raise Terminated("SIGTERM")


def end_with_parent() -> None:
    """Let this process end as soon as the one that it works for has ended, even if that was killed.

    A loader's worker would wait for its next task for ever: its own parent, the server that forked it, stays as long as
    there are workers. multiprocessing knows for whom it works. A process that multiprocessing has not started works for
    the one that started it.
    """
    threading.Thread(target=_watch, args=(multiprocessing.parent_process(), os.getppid()), daemon=True).start()


def _watch(parent: multiprocessing.process.BaseProcess | None, starter: int) -> None:
    if parent is not None:
        parent.join()
    else:
        while os.getppid() == starter:
            time.sleep(SECONDS)
    os._exit(1)  # not only this thread, and without waiting for others
