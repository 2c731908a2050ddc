"""The one entry: ``python -m pipeline STAGE [key=value ...]``, which is what the Makefile calls."""

import os
import sys
from pathlib import Path

from graftline.console import show_log
from pipeline.stage import EXIT_INTERRUPTED, EXIT_MISTAKE, report_error
from pipeline.worker import WORKER, work

STAGES = (
    "ingest", "train", "evaluate", "verify", "predict", "augment-preview", "fetch-weights", "cost", "cache", "sync",
)  # fmt: skip


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
    from graftline.errors import UserError
    from pipeline import launch, overrides

    stage, *typed = arguments or [""]
    if typed == ["--from-make"]:
        typed = overrides.from_makeflags(os.environ.get("MAKEFLAGS", ""))
    if stage == "config":
        return launch.show_config(typed)
    if stage not in STAGES:
        raise UserError(f"{stage or 'nothing'} is not a stage: take one of {', '.join((*STAGES, 'config'))}.")
    return launch.launch(stage, typed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
