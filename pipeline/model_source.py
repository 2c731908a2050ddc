"""Where a stage's ``model=`` leads: to a registered model, whose name may come to mean another, or to a bundle."""

from pathlib import Path

from graftline.pipeline.bundle_source import REGISTERED, RUN, find_bundle
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
