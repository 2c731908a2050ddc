"""Processes that need not import torch, Lightning and MLflow first: they are forked from one that has (`warmed`).

Such a process has an environment, a working folder, an output and an exit code of its own, as if a shell had started
it; only the seconds of the imports are saved. What a test wants to see of the start itself (its imports, the processes
that Lightning starts by the same command line) it starts by its command.
"""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import ClassVar

from graftline.console import console

_CONTEXT = multiprocessing.get_context("forkserver")


def start_warming_up() -> None:
    """Start the one that all are forked from, unless it runs; it imports while others go on.

    Before the code under test has multiprocessing start one of its own kind, as there is one for all; and with this
    folder on the path, since Python 3.11 keeps ``sys.path`` to itself.
    """
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([path] if path else [])])
    try:
        _CONTEXT.set_forkserver_preload(["warmed"])
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if path is not None:
            os.environ["PYTHONPATH"] = path


class WarmProcess:
    """A running function; what it and all that it starts print goes to a file.

    Args:
        target: what runs; its result is the exit code.
        folder: where it runs.
        environment: all of its variables.
        output: the file.
    """

    def __init__(self, target: Callable[[], int], folder: Path, environment: Mapping[str, str], output: Path) -> None:
        start_warming_up()
        self._output = output
        self._process = _CONTEXT.Process(target=_enter, args=(target, folder, dict(environment), output))
        self._process.start()

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8") if self._output.exists() else ""

    @property
    def code(self) -> int | None:
        """The exit code, minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, signum: signal.Signals) -> None:
        if self.code is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """End it by SIGKILL, unless it has ended."""
        self._process.kill()
        self._process.join()

    def wait(self, timeout: float) -> int:
        """Wait for the end and return the exit code.

        Raises:
            TimeoutError: with the output.
        """
        self._process.join(timeout)
        if self.code is None:
            self._process.kill()
            raise TimeoutError(self.output)
        return self.code


class WarmRank(WarmProcess):
    """A further process of a training, as Lightning starts it by its command: in the place of `subprocess.Popen`."""

    _started: ClassVar[list["WarmRank"]] = []  # whoever has started them need not keep them

    def __init__(
        self, run: Callable[[list[str]], int], command: Sequence[str], env: Mapping[str, str], cwd: str | None
    ) -> None:
        _python, _program, *arguments = command
        super().__init__(partial(run, arguments), Path(cwd or "."), env, Path("/proc/self/fd/1").readlink())
        # it is not waited for at the end
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
        self._started.append(self)

    def poll(self) -> int | None:
        return self.code

    @property
    def returncode(self) -> int | None:
        return self.code


def _enter(target: Callable[[], int], folder: Path, environment: dict[str, str], output: Path) -> None:
    assert "warmed" in sys.modules, "multiprocessing says nothing of imports that fail"
    # the server that has forked this process forks for it, too: Python 3.11 would start another one
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where pytest itself was started to ignore Ctrl-C
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(written, descriptor)
    console.width = int(environment["COLUMNS"])  # what it took from the variables when it was made
    atexit._clear()  # what was registered before the fork is not this process's
    try:
        sys.exit(target())
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
