"""A full disk, for which a limit on the size of files stands in."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes."""
    before, is_off = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    sys.dont_write_bytecode = True  # Python keeps what fits of it, and fails to read it the next time
    try:
        yield
    finally:
        sys.dont_write_bytecode = is_off
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
