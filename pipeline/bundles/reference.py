"""What a stage compares with the images that a model sees: the reference in its bundle."""

from pathlib import Path

from graftline.bundle.ensemble import is_ensemble, read_ensemble
from graftline.bundle.layout import DRIFT_FILE, is_intact, read_description
from graftline.bundle.reference import Reference
from graftline.errors import UserError
from graftline.pipeline.program import program


def load_reference(bundle: Path, uri: str) -> Reference:
    """Return what a bundle's images are compared with.

    Raises:
        UserError: it has none, or a changed one.
    """
    content, file = (read_ensemble if is_ensemble(bundle) else read_description)(bundle), bundle / DRIFT_FILE
    if content.get("reference") is not None and not is_intact(file, content["files"].get(DRIFT_FILE)):
        raise UserError(f"{file} is not what was saved: copy or save the bundle again.")
    if (reference := Reference.load(file, content.get("reference"))) is not None:
        return reference
    if is_ensemble(bundle):
        raise UserError(
            f"{uri} is an ensemble of an earlier graftline, without a reference to compare with: make it again, or "
            f"give one of its members as DriftStage.model, such as {bundle}/members/1."
        )
    raise UserError(
        f"{uri} was trained by an earlier graftline, or by a stage that leaves no reference to compare with: "
        f"`{program()} train` leaves one, with the settings it was trained with."
    )
