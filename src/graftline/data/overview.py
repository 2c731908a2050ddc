"""Tell what a dataset version holds: the images by class and split, and what has changed since its parent."""

import logging
import os

import pandas as pd

from graftline.console import format_table
from graftline.data.manifest import SPLITS
from graftline.data.version import DatasetVersion
from graftline.words import join_names

logger = logging.getLogger(__name__)

_SHOWN_CLASSES = 20  # a longer table is no overview any more


def log_version(version: DatasetVersion, is_new: bool) -> None:
    """Log the images by class, what has changed since the parent if the version is new, and its digest."""
    counts = version.counts()
    labels = list(version.class_names) if len(version.class_names) <= _SHOWN_CLASSES else []
    rows = [(label, *(f"{counts[split][label]:,}" for split in SPLITS)) for label in labels]
    rows.append(("all", *(f"{sum(counts[split].values()):,}" for split in SPLITS)))
    title = f"{version.name}: {len(version.class_names):,} classes"
    logger.info(format_table(title, ("images", *SPLITS), rows))
    changes = version.origin["changes"]
    if is_new and changes is not None:
        rows = [(kind, *(f"{changes[kind].get(split, 0):,}" for split in SPLITS)) for kind in changes]
        logger.info(format_table(f"since version {version.parent}", ("images", *SPLITS), rows))
    state = "new dataset version" if is_new else "nothing is new, dataset version"
    logger.info(f"{version.name}: {state} {version.digest} ({os.path.relpath(version.directory)})")


def log_classes(version: DatasetVersion, parent: DatasetVersion) -> None:
    """Log which classes are new, and warn of those that are gone: a model of this version will not know them."""
    before, now = set(parent.class_names), set(version.class_names)
    if new := [f"“{name}”" for name in version.class_names if name not in before]:
        logger.info(f"Classes that are new since version {parent.digest}: {join_names(new)}.")
    if gone := [f"“{name}”" for name in parent.class_names if name not in now]:
        logger.warning(f"Classes of version {parent.digest} of which no image is left: {join_names(gone)}.")


def warn_of_other_images(sha256: "pd.Series[str]", parent: DatasetVersion) -> None:
    """Warn where none of a new version's images is in its parent: two folders of one name may be two data sets."""
    if not parent.has_any_of(sha256):
        logger.warning(
            f"None of the images in version {parent.digest} of {parent.name} ({parent.summary['root']}) is among "
            "these. Give another data set a name of its own (Ingest.name), or its models become versions of the same "
            "registered model; where these take the place of all before, Ingest.parent='none' draws anew."
        )
