"""What a check finds: a name, whether it is well, and one line that says what is and the way out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from graftline.console import reworded
from graftline.errors import UserError, first_line
from graftline.pipeline.program import program

State = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        name: of what was looked at.
        state: ``broken``: stages will fail, or give what they should not; ``warning``: some may.
        text: what is, and the way out if it is not well.
    """

    name: str
    state: State
    text: str


def ok(name: str, text: str) -> Finding:
    """Return the finding that all is well."""
    return Finding(name, "ok", text)


def warning(name: str, text: str) -> Finding:
    """Return the finding that something may go wrong."""
    return Finding(name, "warning", text)


def broken(name: str, text: str) -> Finding:
    """Return the finding that something is wrong."""
    return Finding(name, "broken", text)


def checked(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return what a check finds; what it fails with is a finding too.

    Args:
        name: of what is looked at, for a check that fails.
        check: looks at it.
    """
    try:
        return list(check())
    except UserError as error:
        return [broken(name, reworded(str(error)).rstrip("."))]
    except Exception as error:  # a broken package raises anything, and the other checks are to go on
        return [broken(name, f"cannot be checked ({type(error).__name__}: {first_line(error)}): {new_environment()}")]


def install(packages: str) -> str:
    """Return the command that installs packages, as pip takes them; make's, in a clone, installs all of the lock."""
    return "make setup" if program() == "make" else f"pip install {packages}"


def new_environment(python: str = "") -> str:
    """Return the way out of an environment that is of the wrong kind, or in which a package is damaged.

    Args:
        python: that the new one is to be made with; empty: any.
    """
    if program() == "make":
        return f"rm -r .venv, then make setup{f' PYTHON={python}' if python else ''}"
    return f"install graftline into a new environment{f' of {python}' if python else ''}"
