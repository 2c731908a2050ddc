"""The end of processes that work for another one: they end with it, however it ended."""

import multiprocessing
import os
import threading
import time

SECONDS = 1.0  # between two looks whether the parent is still there


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
