"""A stage that dies by SIGKILL at a place in the code, as if the power had gone, or whose server does."""

import os
import signal
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any


def die_at(place: str, when: str, arguments: list[str]) -> int:
    """Run a stage in this process, which is killed before or after a call of ``module:Class.method``.

    Args:
        place: that method.
        when: "before", "after", or "after 2" for the second call.
        arguments: of the command line.
    """
    return _kill_at(place, when, partial(os.kill, os.getpid(), signal.SIGKILL), arguments)


def lose_server_at(place: str, when: str, group: int, arguments: list[str]) -> int:
    """Do the same to the processes of a server, and let the stage go on."""
    return _kill_at(place, when, partial(os.killpg, group, signal.SIGKILL), arguments)


def hurried(arguments: list[str]) -> int:
    """Run a stage that waits less for a server that is away than for a user's."""
    from graftline.pipeline.__main__ import main
    from graftline.tracking import run

    run._END_SECONDS = dict.fromkeys(run._END_SECONDS, 1.0)
    run._SETTLE_SECONDS = run._MODEL_SECONDS = 1.0
    return main(arguments)


def _kill_at(place: str, when: str, kill: Callable[[], None], arguments: list[str]) -> int:
    from graftline.pipeline.__main__ import main

    module, _, path = place.partition(":")
    owner: Any = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
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
