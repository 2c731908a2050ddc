"""Where a stage's ``bundle=`` leads: to a directory, or by way of MLflow's runs and models to one."""

import re
from pathlib import Path

from graftline.bundle.predictor import EngineName, Predictor
from graftline.bundle.verify import find_problem
from graftline.console import warn
from graftline.execution import Execution
from graftline.pipeline.program import program
from graftline.pipeline.run_directory import RunDirectory
from graftline.tracking.tracking import Tracking

REGISTERED = "models:/"
RUN = re.compile(r"(?:runs:/)?([0-9a-f]{32})")


def find_bundle(reference: str, tracking: Tracking) -> Path:
    """Return the directory of a bundle.

    Args:
        reference: the directory of a bundle or of the run that made it, that run's id, ``models:/NAME@ALIAS`` or
            ``models:/NAME/VERSION``.
        tracking: knows the runs and the names.
    """
    if reference.startswith(REGISTERED):
        return tracking.registry().bundle(reference)
    if (run := RUN.fullmatch(reference)) is not None:
        return RunDirectory(tracking.find_output_directory(run[1])).bundle
    directory = Path(reference).expanduser()
    of_run = RunDirectory(directory).bundle
    return of_run if of_run.is_dir() else directory


def open_bundle(reference: str, tracking: Tracking, engine: EngineName, execution: Execution) -> tuple[Predictor, Path]:
    """Load a bundle; warn if it gives other probabilities here than where it was saved."""
    directory = find_bundle(reference, tracking)
    predictor = Predictor.from_directory(directory, engine, execution)
    if (problem := find_problem(predictor, directory, execution)) is not None:
        warn(f"{problem} `{program()} verify bundle={reference}` shows the steps.")
    return predictor, directory
