"""Where a stage's ``bundle=`` or ``model=`` leads: to a directory, or by way of MLflow's runs and models to one."""

import re
from pathlib import Path
from typing import NamedTuple

from graftline.bundle.engines import EngineName
from graftline.bundle.ensemble import AnyPredictor, load_predictor
from graftline.bundle.layout import CARD_FILE
from graftline.bundle.verify import find_problem
from graftline.console import say, warn
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.pipeline.program import program
from graftline.pipeline.runs.choice import is_of_run
from graftline.pipeline.runs.directory import RunDirectory
from graftline.serving.origin import BundleFolder, ModelSource, Origin, Registered
from graftline.tracking.registry import NUM_LISTED, Registry
from graftline.tracking.run_bundle import bundle_of_run
from graftline.tracking.tracking import Tracking

REGISTERED = "models:/"
RUN = re.compile(r"(?:runs:/)?([0-9a-f]{32})")


def find_bundle(reference: str, tracking: Tracking) -> Path:
    """Return the directory of a bundle.

    Args:
        reference: the directory of a bundle or of the run that made it, that run's id, ``models:/NAME@ALIAS`` or
            ``models:/NAME/VERSION``. That of a run whose directory is not on this machine comes by way of MLflow.
        tracking: knows the runs and the names.

    Raises:
        UserError: the reference leads nowhere, to a run without a bundle, or to one whose output directory has the
            bundle of another run by now.
    """
    if reference.startswith(REGISTERED):
        return tracking.registry().bundle(reference)
    if (run := RUN.fullmatch(reference)) is not None:
        tested = tracking.registry().tested_run(run[1])
        if tested.directory is not None and _is_elsewhere(RunDirectory(tested.directory), run[1]):
            return bundle_of_run(tracking.registry(), run[1])
        files = RunDirectory(tracking.find_output_directory(run[1]))
        bundle = files.bundle
        if not bundle.is_dir():
            raise UserError(f"Run {run[1]} has no bundle in {bundle}: take a run that has trained a model to its end.")
        if not is_of_run(bundle, tested):
            if files.last_run_id == run[1]:
                raise UserError(
                    f"{bundle} is not the model that run {run[1]} has logged, as after a resume that was interrupted: "
                    f"{program()} train train.resume={run[1]} goes on with it."
                )
            raise UserError(
                f"{bundle} is no longer the model of run {run[1]}, as a later training has written there: give the "
                "model as MLflow knows it, models:/NAME/VERSION, or train it again in a directory of its own."
            )
        return bundle
    directory = Path(reference).expanduser()
    of_run = RunDirectory(directory).bundle
    return of_run if of_run.is_dir() else directory


def _is_elsewhere(files: RunDirectory, run_id: str) -> bool:
    """Tell whether a run has written to the output directory of another machine: here may be its result alone.

    What is here may also be left of another run, as of a member that began here and was trained elsewhere.
    """
    return files.last_run_id != run_id and not files.bundle.is_dir()


def find_model_uri(reference: str, tracking: Tracking) -> str | None:
    """Return ``models:/NAME/VERSION`` of what `find_bundle` takes; None where that is no registered model."""
    return tracking.registry().version(reference).uri if reference.startswith(REGISTERED) else None


def find_source(reference: str, tracking: Tracking) -> ModelSource:
    """Return where a model comes from.

    Args:
        reference: what `find_bundle` takes, or the name of a registered model, which stands for its champion, or while
            it has none for the newest version that the gate has not refused; a folder of that name, such as of the
            images, counts if a bundle is in it.
        tracking: knows the runs and the names.

    Raises:
        UserError: neither a bundle nor a model is known by that name.
    """
    is_name = "/" not in reference and RUN.fullmatch(reference) is None and not _has_bundle(Path(reference))
    if is_name or reference.startswith(REGISTERED):
        registry = tracking.registry()
        if is_name:
            _check_name(reference, registry)
        return Registered(reference, registry)
    bundle = find_bundle(reference, tracking)
    return BundleFolder(bundle, bundle.resolve().parent.name if bundle.name == "bundle" else bundle.resolve().name)


def _has_bundle(directory: Path) -> bool:
    """Tell whether a folder is a bundle's, or that of a run with one."""
    directory = directory.expanduser()
    return any((one / CARD_FILE).is_file() for one in (directory, RunDirectory(directory).bundle))


def _check_name(name: str, registry: Registry) -> None:
    """Raise a UserError where a name is that of no bundle, and certainly that of no model."""
    is_folder = Path(name).expanduser().is_dir()
    here = f"'{name}' is {'a folder here without a bundle' if is_folder else 'no folder here'}"
    if not registry.is_there:
        raise UserError(
            f"{here}, and there is no {registry.store} that could have a model of this "
            "name: give a bundle's folder, or the Tracking.uri of the database or server that has the model."
        )
    if is_folder and name not in (known := registry.names()):
        there = ", ".join(known[:NUM_LISTED]) or "none"
        raise UserError(
            f"{here}, and not a model of the {registry.store} (there: {there}): give a bundle or a model's name."
        )


class OpenModel(NamedTuple):
    """A loaded model.

    Attributes:
        name: of the registered model, or of the run's or bundle's folder.
        predictor: what classifies.
        directory: of its bundle.
        origin: what it was asked for by means now.
    """

    name: str
    predictor: AnyPredictor
    directory: Path
    origin: Origin


def open_model(reference: str, tracking: Tracking, engine: EngineName, execution: Execution) -> OpenModel:
    """Load what `find_source` finds; warn if it gives other probabilities here than where it was saved."""
    source = find_source(reference, tracking)
    origin = source.find()
    if isinstance(source, Registered) and (note := source.note(origin)) is not None:
        say(note)
    directory = source.fetch(origin)
    return OpenModel(source.name, _load(directory, origin.uri, engine, execution), directory, origin)


def open_bundle(
    reference: str, tracking: Tracking, engine: EngineName, execution: Execution
) -> tuple[AnyPredictor, Path]:
    """Load a bundle; warn if it gives other probabilities here than where it was saved."""
    directory = find_bundle(reference, tracking)
    return _load(directory, reference, engine, execution), directory


def _load(directory: Path, reference: str, engine: EngineName, execution: Execution) -> AnyPredictor:
    predictor = load_predictor(directory, engine, execution)
    if (problem := find_problem(predictor, directory, execution)) is not None:
        warn(f"{problem} `{program()} verify bundle={reference}` shows the steps.")
    return predictor
