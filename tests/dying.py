"""A stage that dies by SIGKILL at a place in the code, as if the power had gone."""

import os
import signal
from collections.abc import Callable
from importlib import import_module
from typing import Any


def die_at(place: str, when: str, arguments: list[str]) -> int:
    """Run a stage in this process, which is killed before or after a call of ``module:Class.method``.

    Args:
        place: that method.
        when: "before", "after", or "after 2" for the second call.
        arguments: of the command line.
    """
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
        if left or when.startswith("after"):
            result = original(*positional, **named)
        if left:
            return result
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(owner, name, dying)
    return main(arguments)
