"""What a stage compares with the images that a model sees: the reference in its bundle."""

from pathlib import Path

from graftline.bundle.ensemble import is_ensemble
from graftline.bundle.layout import DRIFT_FILE, find_damage, read_description
from graftline.bundle.reference import Reference
from graftline.errors import UserError
from graftline.pipeline.program import program


def load_reference(bundle: Path, uri: str) -> Reference:
    """Return what a bundle's images are compared with.

    Raises:
        UserError: it has none, or a changed one.
    """
    if not is_ensemble(bundle):
        content = read_description(bundle)
        if content.get("reference") is not None and (damaged := find_damage(bundle, content, DRIFT_FILE)):
            raise UserError(f"{bundle / damaged[0]} is not what was saved: copy or save the bundle again.")
        if (reference := Reference.load(bundle / DRIFT_FILE, content.get("reference"))) is not None:
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
