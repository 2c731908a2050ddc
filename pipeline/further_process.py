"""How a further process of a distributed training learns which run it works for: by an environment variable."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What Lightning sets in the first process when it starts further ones (its launcher, subprocess_script.py).
LAUNCHED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WORKER = "GRAFTLINE_WORKER"  # environment variable: output directory of the run that a further process works for


@contextmanager
def announced(directory: Path) -> Iterator[None]:
    """Tell the processes that Lightning may start during the block which run they work for."""
    before = dict(os.environ)
    os.environ[WORKER] = str(directory)
    try:
        yield
    finally:  # the next run of several starts processes of its own
        import torch  # loaded long since by whoever has trained; a mistyped key must not wait for it

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name in (WORKER, *LAUNCHED):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
