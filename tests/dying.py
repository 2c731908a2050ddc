"""A stage that dies by SIGKILL at a place in the code, as if the power had gone."""

import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def die_at(place: str, when: str, arguments: list[str]) -> int:
    """Run a stage in this process, which is killed before or after the first call of ``module:Class.method``."""
    from graftline.pipeline.__main__ import main

    module, _, path = place.partition(":")
    owner: Any = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original: Callable[..., Any] = getattr(owner, name)

    def dying(*positional: Any, **named: Any) -> Any:
        if when == "after":
            original(*positional, **named)
        Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)
    return main(arguments)
