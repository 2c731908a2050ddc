"""A further process of a distributed training: it trains along and leaves everything else to the first process."""

import os
import socket
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from graftline.console import console
from graftline.errors import DivergenceError, UserError, find_cause
from graftline.pipeline.cli.errors import EXIT_DONE, EXIT_MISTAKE, report_error
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.training.further_process import WORKER
from graftline.processes import end_with_parent
from graftline.training.launch import Launch
from graftline.training.lost_process import LostProcessError, leave_group

__all__ = ["WORKER", "follow", "work"]

if TYPE_CHECKING:  # it loads torch, which a mistyped key must not wait for
    from graftline.training.ranks import FurtherRank

SECONDS_TO_SEE = 10  # files that another node has written
SECONDS_TO_END = 60  # that the first process may take to find out and to mark the run


def work(directory: Path) -> int:
    """Train along with the run whose output directory this is; returns the exit code."""
    end_with_parent()
    console.quiet = True
    code = _train_along(directory)
    if code != EXIT_DONE:
        _let_the_first_end()
    return code


def follow(launch: Launch) -> int:
    """Train along with all runs of the process of rank 0, until that is done; returns the exit code."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch would show its stack where rank 0 is gone
    from graftline.training.ranks import FurtherRank

    end_with_parent()
    console.quiet = launch.local_rank > 0
    try:
        rank = FurtherRank(launch)
    except UserError as error:
        report_error(error)
        return EXIT_MISTAKE
    console.quiet, code = True, EXIT_DONE
    while (order := rank.next_order()).directory is not None:
        with suppress(OSError):  # it says below what is not there
            os.chdir(order.folder)
        if _train_along(Path(order.directory), rank) != EXIT_DONE:
            rank.say_failed()
            code = EXIT_MISTAKE
    return code


def _train_along(directory: Path, rank: "FurtherRank | None" = None) -> int:
    from graftline.pipeline.cli.build import build
    from graftline.pipeline.cli.wording import worded
    from graftline.training.trainer import make_execution

    try:
        _find(directory)
        config = OmegaConf.load(RunDirectory(directory).config)
        assert isinstance(config, DictConfig)
        with worded(config):
            stage: Any = build(config)  # the stage train: no other starts further processes
            with nullcontext() if rank is None else rank.training(make_execution(stage.trainer).device):
                stage.work(directory)
    except Exception as error:
        if not any(find_cause(error, kind) for kind in (DivergenceError, LostProcessError)):  # another one says those
            console.quiet = False
            report_error(error, directory)
            console.quiet = True
        return EXIT_MISTAKE
    return EXIT_DONE


def _find(directory: Path) -> None:
    """Wait for the output directory of the run: a file system that machines share may show it late.

    Raises:
        UserError: it is not there.
    """
    deadline = time.monotonic() + SECONDS_TO_SEE
    while not RunDirectory(directory).config.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{directory}, the output directory of the run, is not to be seen on {socket.gethostname()}: all nodes "
                "need the same files at the same place, by a file system that they share."
            )
        time.sleep(1)


def _let_the_first_end() -> None:
    """Leave the group of processes and wait until the first one has ended, with which this one ends.

    The first one fails as soon as the group is incomplete, and marks the run. Lightning would kill it, within 5 s, were
    this process gone.
    """
    leave_group(is_complete=False)
    time.sleep(SECONDS_TO_END)
