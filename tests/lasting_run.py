"""A process that logs a run and then keeps it open."""

import os
import sys
import time
from pathlib import Path

from graftline.tracking.tracking import Tracking


def log_and_last(uri: str, directory: Path, seconds: float) -> int:
    """Log a hundred values, print the run's id, and end it after some seconds."""
    tracking = Tracking(uri=uri, system_metrics=False)
    with tracking.start(run_name="first", experiment="pets", directory=directory, tags={}) as run:
        for step in range(100):
            run.log_metrics({"loss": step / 2}, step)
        sys.stdout.write(f"{run.id}\n")
        sys.stdout.flush()
        time.sleep(seconds)
    return 0


def log_together(uri: str, directory: Path, ready: Path) -> int:
    """Say that this process waits, and log a run as soon as a file is there."""
    Path(f"waits.{os.getpid()}").touch()
    while not ready.exists():
        time.sleep(0.001)
    return log_and_last(uri, directory, seconds=0)
