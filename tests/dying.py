"""A stage that dies by SIGKILL at a place in the code, as if the power had gone, or whose server or database does."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from locking import FOR_GOOD, hold

_holders: list[subprocess.Popen[bytes]] = []


def die_at(place: str, when: str, arguments: list[str]) -> int:
    """Run a stage in this process, which is killed before or after a call of ``module:Class.method``.

    Args:
        place: that method.
        when: "before", "after", or "after 2" for the second call.
        arguments: of the command line.
    """
    return _kill_at(place, when, partial(os.kill, os.getpid(), signal.SIGKILL), arguments)


def lose_server_at(place: str, when: str, server: int, arguments: list[str]) -> int:
    """Do the same to the process of a server, and let the stage go on."""
    return _kill_at(place, when, partial(os.kill, server, signal.SIGKILL), arguments)


def lock_at(places: Sequence[str], database: Path, seconds: float, arguments: list[str]) -> int:
    """Let another process write into a local database for some seconds, from before the first call of each method."""
    for place in places:
        _before(place, partial(_hold, database, seconds))
    return hurried(arguments)


def lock_for_good_at(place: str, database: Path, arguments: list[str]) -> int:
    """Do so until this process ends; MLflow waits for 0.2 s at each question, and not for 20."""
    from sqlalchemy import text

    sql: Any = import_module("mlflow.store.db.utils").sql
    sql.text = lambda statement: text(statement.replace("20000", "200"))
    _before(place, partial(_hold, database, FOR_GOOD))
    return hurried(arguments)


def fail_at(place: str, error: Exception, arguments: list[str]) -> int:
    """Run a stage in which the first call of a method fails."""
    from graftline.pipeline.__main__ import main

    _before(place, partial(_raise, error))
    return main(arguments)


def _raise(error: Exception) -> None:
    raise error


def _hold(database: Path, seconds: float) -> None:
    _holders.append(hold(database, seconds))  # who is referred to by nobody loses its pipe


def hurried(arguments: list[str]) -> int:
    """Run a stage that is patient with a busy server, and gives one up that is away at the second try."""
    from graftline.pipeline.__main__ import main
    from graftline.tracking import client
    from graftline.tracking.outbox import Outbox

    wait, client.START_SECONDS, client._START_REQUEST_SECONDS = Outbox.wait, 120.0, 60

    def wait_while_it_answers(self: Outbox, timeout: float) -> bool:
        end = time.monotonic() + timeout
        while not (sent := wait(self, 0.5)) and self._failures < 2 and time.monotonic() < end + 60:
            continue
        return sent

    Outbox.wait = wait_while_it_answers  # type: ignore[method-assign]
    return main(arguments)


def _kill_at(place: str, when: str, kill: Callable[[], None], arguments: list[str]) -> int:
    from graftline.pipeline.__main__ import main

    owner, name = _find(place)
    original: Callable[..., Any] = getattr(owner, name)
    left = int(when.partition(" ")[2] or 1)

    def dying(*positional: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            kill()
        result = original(*positional, **named)
        if left == 0 and when != "before":
            kill()
        return result

    setattr(owner, name, dying)
    return main(arguments)


def _before(place: str, happens: Callable[[], None]) -> None:
    """Let something happen before the first call of a method."""
    owner, name = _find(place)
    original: Callable[..., Any] = getattr(owner, name)

    def later(*positional: Any, **named: Any) -> Any:
        setattr(owner, name, original)
        happens()
        return original(*positional, **named)

    setattr(owner, name, later)


def _find(place: str) -> tuple[Any, str]:
    """Return what has a method, which ``module:Class.method`` names, and its name."""
    module, _, path = place.partition(":")
    owner: Any = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name
