"""Where a stage's ``bundle=`` leads: to a directory, or by way of MLflow's registry to one."""

from pathlib import Path

from graftline.bundle.predictor import EngineName, Predictor
from graftline.bundle.verify import find_problem
from graftline.console import warn
from graftline.execution import Execution
from graftline.pipeline.program import program
from graftline.tracking.tracking import Tracking

REGISTERED = "models:/"


def find_bundle(reference: str, tracking: Tracking) -> Path:
    """Return the directory of a bundle.

    Args:
        reference: a directory, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        tracking: says which registry knows the name.
    """
    if reference.startswith(REGISTERED):
        return tracking.registry().bundle(reference)
    return Path(reference)


def open_bundle(reference: str, tracking: Tracking, engine: EngineName, execution: Execution) -> tuple[Predictor, Path]:
    """Load a bundle; warn if it gives other probabilities here than where it was saved."""
    directory = find_bundle(reference, tracking)
    predictor = Predictor.from_directory(directory, engine, execution)
    if (problem := find_problem(predictor, directory, execution)) is not None:
        warn(f"{problem} `{program()} verify` shows the steps.")
    return predictor, directory
