"""A further process of a distributed training: it trains along and leaves everything else to the first process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from graftline.console import console
from pipeline.stage import EXIT_DONE, EXIT_MISTAKE, report_error

WORKER = "GRAFTLINE_WORKER"  # environment variable: output directory of the run that a further process works for


@contextmanager
def announced(directory: Path) -> Iterator[None]:
    """Tell the processes that Lightning may start during the block which run they work for."""
    os.environ[WORKER] = str(directory)
    try:
        yield
    finally:
        del os.environ[WORKER]


def work(directory: Path) -> int:
    """Train along with the run whose output directory this is."""
    from pipeline.launch import build
    from pipeline.train import Train

    console.quiet = True
    config = OmegaConf.load(directory / ".hydra" / "config.yaml")
    assert isinstance(config, DictConfig)
    stage = build(config)
    assert isinstance(stage, Train)
    try:
        stage.work(directory)
    except Exception as error:
        console.quiet = False
        report_error(error, directory)
        return EXIT_MISTAKE
    return EXIT_DONE
