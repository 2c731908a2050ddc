"""The one entry: ``python -m pipeline STAGE [key=value ...]``, which is what the Makefile calls."""

import gc
import os
import sys
from pathlib import Path

from graftline.console import console, say, show_log
from graftline.pipeline.cli.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_MISTAKE, report_error
from graftline.pipeline.worker import WORKER, work


def main(arguments: list[str]) -> int:
    """Check what was typed, then run the stage; returns the exit code."""
    show_log()
    if directory := os.environ.get(WORKER):
        return work(Path(directory))
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        report_error(error)
        return EXIT_MISTAKE


def _run(arguments: list[str]) -> int:
    from graftline.pipeline.cli.composed_stage import compose_all
    from graftline.pipeline.cli.make import from_makeflags
    from graftline.pipeline.cli.sweep import run_all

    gc.disable()  # it would search what is imported for garbage, again and again: a fifth of the time
    stage, *typed = arguments or [""]
    if typed == ["--from-make"]:
        typed = from_makeflags(os.environ.get("MAKEFLAGS", ""))
    if stage == "config":
        return _show_config(typed)
    composed = compose_all(stage, typed)
    gc.freeze()  # what is imported stays
    gc.enable()
    return run_all(composed)


def _show_config(typed: list[str]) -> int:
    """Print the composed configuration of a training."""
    from omegaconf import OmegaConf
    from rich.syntax import Syntax

    from graftline.pipeline.cli.hydra_conf import session
    from graftline.pipeline.cli.validate import validate

    with session("train"):
        text = OmegaConf.to_yaml(validate("train", typed).config)
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:
        say(text)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
