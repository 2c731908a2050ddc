"""A further process of a distributed training: it trains along and leaves everything else to the first process."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from graftline.console import console
from graftline.pipeline.cli.errors import EXIT_DONE, EXIT_MISTAKE, report_error
from graftline.pipeline.further_process import WORKER
from graftline.pipeline.run_directory import RunDirectory

__all__ = ["WORKER", "work"]


def work(directory: Path) -> int:
    """Train along with the run whose output directory this is; returns the exit code."""
    from graftline.pipeline.cli.build import build
    from graftline.pipeline.cli.wording import worded

    console.quiet = True
    config = OmegaConf.load(RunDirectory(directory).config)
    assert isinstance(config, DictConfig)
    try:
        with worded(config):
            stage: Any = build(config)  # the stage train: no other starts further processes
            stage.work(directory)
    except Exception as error:
        console.quiet = False
        report_error(error, directory)
        return EXIT_MISTAKE
    return EXIT_DONE
