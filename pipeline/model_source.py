"""Where a stage's ``model=`` leads: to a registered model, whose name may come to mean another, or to a bundle."""

from pathlib import Path

from graftline.bundle.ensemble import is_ensemble
from graftline.bundle.layout import DRIFT_FILE, read_description
from graftline.bundle.reference import Reference
from graftline.errors import UserError
from graftline.pipeline.bundle_source import REGISTERED, RUN, find_bundle
from graftline.pipeline.program import program
from graftline.serving.origin import Folder, Registered, Source
from graftline.tracking.tracking import Tracking


def find_source(reference: str, tracking: Tracking) -> Source:
    """Return what is meant.

    Args:
        reference: name of a registered model, which stands for its champion, or for its newest version while it has
            none; ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, a run's id, directory or bundle.
        tracking: knows the models and runs.
    """
    if reference.startswith(REGISTERED):
        return Registered(reference, tracking.registry())
    if RUN.fullmatch(reference) or "/" in reference or Path(reference).expanduser().is_dir():
        bundle = find_bundle(reference, tracking)
        name = bundle.resolve().parent.name if bundle.name == "bundle" else bundle.resolve().name
        return Folder(bundle, name)
    return Registered(reference, tracking.registry())


def load_reference(bundle: Path, uri: str) -> Reference:
    """Return what a bundle's images are compared with.

    Raises:
        UserError: it has none.
    """
    content = None if is_ensemble(bundle) else read_description(bundle).get("reference")
    if (reference := Reference.load(bundle / DRIFT_FILE, content)) is not None:
        return reference
    if is_ensemble(bundle):
        raise UserError(
            f"{uri} is an ensemble, which has no reference of its own to compare with: give one of its members as "
            f"DriftStage.model, such as {bundle}/members/1."
        )
    raise UserError(
        f"{uri} was trained by an earlier graftline, or by a stage that leaves no reference to compare with: "
        f"`{program()} train` leaves one, with the settings it was trained with."
    )
