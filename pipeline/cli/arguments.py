"""What was typed behind the program's name: a stage, overrides and a few options."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from graftline.errors import UserError
from graftline.pipeline.cli.make import from_makeflags
from graftline.pipeline.program import FROM_MAKE, program

SHELLS = ("bash", "zsh", "fish")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: {program()} --help says what there is.")


class Arguments(argparse.Namespace):
    """The command line of a stage, or of one of the options that stand alone."""

    stage: str
    overrides: list[str]
    config_dir: Path | None
    help: bool
    completion: str | None


def read(arguments: Sequence[str]) -> Arguments:
    """Read the command line.

    Raises:
        UserError: there is no such option, or it lacks its value.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("stage", nargs="?", default="")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--config-dir", type=lambda text: Path(text).expanduser())
    parser.add_argument("--completion", choices=SHELLS)
    parser.add_argument(FROM_MAKE, action="store_true")
    found = parser.parse_intermixed_args(arguments, Arguments())
    if found.from_make:
        found.overrides = from_makeflags(os.environ.get("MAKEFLAGS", ""))
    return found
