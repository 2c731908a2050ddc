"""A further process of a distributed training: it trains along and leaves everything else to the first process."""

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from graftline.console import console
from graftline.errors import find_cause
from graftline.pipeline.cli.errors import EXIT_DONE, EXIT_MISTAKE, report_error
from graftline.pipeline.further_process import WORKER
from graftline.pipeline.run_directory import RunDirectory
from graftline.processes import end_with_parent

__all__ = ["WORKER", "work"]

SECONDS_TO_END = 60  # that the first process may take to find out and to mark the run


def work(directory: Path) -> int:
    """Train along with the run whose output directory this is; returns the exit code."""
    from graftline.pipeline.cli.build import build
    from graftline.pipeline.cli.wording import worded

    end_with_parent()
    console.quiet = True
    config = OmegaConf.load(RunDirectory(directory).config)
    assert isinstance(config, DictConfig)
    try:
        with worded(config):
            stage: Any = build(config)  # the stage train: no other starts further processes
            stage.work(directory)
    except Exception as error:
        from graftline.training.divergence import DivergenceError
        from graftline.training.lost_process import LostProcessError

        if not any(find_cause(error, kind) for kind in (DivergenceError, LostProcessError)):  # another one says those
            console.quiet = False
            report_error(error, directory)
        _let_the_first_end()
        return EXIT_MISTAKE
    return EXIT_DONE


def _let_the_first_end() -> None:
    """Leave the group of processes and wait until the first one has ended, with which this one ends.

    The first one fails as soon as the group is incomplete, and marks the run. Lightning would kill it, within 5 s, were
    this process gone.
    """
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    time.sleep(SECONDS_TO_END)
