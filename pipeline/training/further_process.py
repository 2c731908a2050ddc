"""How a further process of a distributed training learns which run it works for.

One that Lightning starts has an environment variable; one that torchrun or srun has started asks rank 0.
"""

import atexit
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.execution import Execution
from graftline.training.launch import Launch, current_launch
from graftline.training.lost_process import leave_group

if TYPE_CHECKING:  # it loads torch, which a mistyped key must not wait for
    from graftline.training.ranks import FirstRank

# What Lightning sets in the first process when it starts further ones (its launcher, subprocess_script.py).
LAUNCHED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WORKER = "GRAFTLINE_WORKER"  # environment variable: output directory of the run that a further process works for


@functools.cache
def first_rank() -> "FirstRank | None":
    """Meet the processes that torchrun or srun has started with this one; None: it is by itself.

    Raises:
        UserError: they have not come, or cannot train together.
    """
    launch = current_launch()
    if launch is None or launch.world_size == 1:
        return None
    from graftline.training.ranks import FirstRank

    first = FirstRank(launch)
    atexit.register(first.end)
    return first


def further_launch() -> Launch | None:
    """Return how this process was started if that is as a further one, by torchrun or srun."""
    launch = current_launch()
    return None if launch is None or launch.rank == 0 else launch


@contextmanager
def announced(directory: Path, execution: Execution) -> Iterator[None]:
    """Let further processes, if there are any, train for a run during the block."""
    if (first := first_rank()) is not None:
        with first.training(directory, execution.device):
            yield
        return
    with _variable(directory):
        yield


@contextmanager
def _variable(directory: Path) -> Iterator[None]:
    """Tell the processes that Lightning may start during the block which run they work for."""
    before = dict(os.environ)
    os.environ[WORKER] = str(directory)
    is_complete = False
    try:
        yield
        is_complete = True
    finally:  # the next run of several starts processes of its own
        leave_group(is_complete=is_complete)
        for name in (WORKER, *LAUNCHED):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
