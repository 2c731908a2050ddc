"""The one entry: ``graftline STAGE [key=value ...]``; the Makefile calls the same as ``python -m pipeline``."""

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.console import console, say, show_log
from graftline.pipeline.cli.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_MISTAKE, report_error
from graftline.pipeline.cli.interrupts import keep_interrupts
from graftline.pipeline.training.further_process import further_launch
from graftline.pipeline.worker import WORKER, follow, work

if TYPE_CHECKING:
    from graftline.pipeline.cli.arguments import Arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what was typed, or what is given instead, then run the stage; returns the exit code."""
    sys.path.append(str(Path.cwd()))  # stages of the user's own lie there; last, so that they hide nothing
    show_log()
    keep_interrupts()
    try:
        if (directory := os.environ.get(WORKER)) is not None:
            return work(Path(directory))
        if (launch := further_launch()) is not None:
            return follow(launch)
        return _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        report_error(error)
        return EXIT_MISTAKE


def _run(arguments: Sequence[str]) -> int:
    from graftline.pipeline.cli.arguments import read

    typed = read(arguments)
    if typed.help or typed.completion or not typed.stage:
        return _tell(typed)
    if typed.stage == "config":
        return _show_config(typed)

    from graftline.pipeline.cli.composed_stage import compose_all
    from graftline.pipeline.cli.sweep import run_all

    gc.disable()  # it would search what is imported for garbage, again and again: a fifth of the time
    try:
        composed = compose_all(typed.stage, typed.overrides, typed.config_dir)
    finally:
        gc.freeze()  # what is imported stays
        gc.enable()
    return run_all(composed)


def _tell(typed: "Arguments") -> int:
    """Print help or a completion script."""
    from graftline.pipeline.cli.completion import script
    from graftline.pipeline.cli.conf_files import directories
    from graftline.pipeline.cli.help import show_stage, show_stages

    folders = directories(typed.config_dir)
    if typed.completion:
        sys.stdout.write(script(folders, typed.completion))
    elif typed.stage not in ("", "config"):
        show_stage(folders, typed.stage)
    else:
        show_stages(folders)
    return EXIT_DONE if typed.help or typed.completion else EXIT_MISTAKE


def _show_config(typed: "Arguments") -> int:
    """Print the composed configuration of a training."""
    from omegaconf import OmegaConf
    from rich.syntax import Syntax

    from graftline.pipeline.cli.hydra_conf import session
    from graftline.pipeline.cli.validate import validate

    with session("train", typed.config_dir):
        text = OmegaConf.to_yaml(validate("train", typed.overrides).config)
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:
        say(text)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
