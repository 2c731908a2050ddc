"""Ingest: a source of labeled images becomes a dataset version."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from graftline.console import print_table
from graftline.data.checks import check_images
from graftline.data.decode import MAX_PIXELS
from graftline.data.findings import Finding, tell_findings, write_findings
from graftline.data.review import (
    drop_invalid,
    find_wrong_extensions,
    remove_leaks,
    resolve_conflicts,
    review_splits,
)
from graftline.data.sources.source import Source
from graftline.data.split import Split
from graftline.data.version import SPLITS, DatasetVersion, write_version
from graftline.errors import UserError

logger = logging.getLogger(__name__)

_COLUMNS = {"path": "str", "label": "str", "split": "str", "group": "str", "weight": "float32", "stratum": "str"}
_SHOWN_CLASSES = 20  # a longer table is no overview any more


@dataclass(frozen=True)
class IngestResult:
    """What an ingest gave.

    Attributes:
        version: the dataset version.
        report: what was found, image by image; also in ``findings.json`` beside the versions.
        fresh: whether the version is new; False if this very version was there already.
    """

    version: DatasetVersion
    report: list[Finding]
    fresh: bool


@dataclass(frozen=True)
class Ingest:
    """How a data set is read, checked and split (Hydra target of conf/data).

    Attributes:
        name: the data set's name; None for that of ``path``.
        path: where the images are; None for a source that knows.
        source: what reads it.
        split: how it is divided.
        on_invalid: what happens with images that cannot be used.
        on_conflict: what happens with the same image under different labels.
        min_images_per_class: warn of classes with fewer.
        min_side_px: images with a shorter side are bad.
        max_pixels: images with more pixels are bad, and are not decoded.
        workers: threads that check images; 0 for one per core.
        directory: versions are written to ``<directory>/<name>/<digest>``.
    """

    name: str | None
    path: str | None
    source: Source
    split: Split
    on_invalid: Literal["leave_out", "fail"] = "leave_out"
    on_conflict: Literal["exclude", "keep"] = "exclude"
    min_images_per_class: int = 10
    min_side_px: int = 8
    max_pixels: int = MAX_PIXELS
    workers: int = 0
    directory: str = "data"

    def run(self) -> IngestResult:
        """Read, check and split the images, and write the dataset version unless it is there already.

        Raises:
            UserError: nothing to read, fewer than two classes with usable images, or bad images with on_invalid="fail".
        """
        name = self.dataset_name()
        folder = Path(self.directory).absolute() / name
        listed = folder / "findings.json"
        logger.info(f"Reading {name}" + (f" from {self.path}" if self.path else ""))
        images, class_names = _tidy(self.source.read(None if self.path is None else Path(self.path)))
        checks = check_images(
            images["path"].unique().tolist(), self.max_pixels, self.workers, folder / "checked.parquet"
        )
        images, report = drop_invalid(images.merge(checks, on="path", how="left"), self.min_side_px)
        bad = len(report)
        report += find_wrong_extensions(images)
        images, conflicts = resolve_conflicts(images, keep=self.on_conflict == "keep")
        report += conflicts
        write_findings(report, listed)  # here too, as the next lines may stop with a word on these
        if bad and self.on_invalid == "fail":
            first = f"{report[0].path}: {report[0].detail}"
            raise UserError(
                f"{bad:,} images cannot be used (first: {first}): mend or remove those listed in {listed}, "
                "or leave them out with data.on_invalid=leave_out."
            )
        _require_classes(images, class_names, report, listed)
        drawn = self.split.lacking(images)
        images, leaks = remove_leaks(self.split.assign(images))
        report += leaks + review_splits(images, class_names, drawn, self.min_images_per_class)
        write_findings(report, listed)
        version, fresh = write_version(folder, name, images, class_names)
        tell_findings(report, listed)
        _tell(version, fresh)
        return IngestResult(version, report, fresh)

    def dataset_name(self) -> str:
        """Return the name of the data set, fit for folders and for MLflow's registry."""
        if self.name is not None:
            if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
                raise UserError(f"data.name={self.name} is no name: use letters, digits, '_', '-' and '.'.")
            return self.name
        path = Path(self.path or type(self.source).__name__.lower()).expanduser().absolute()
        stem = path.name if path.is_dir() else re.sub(r"(\.(csv|parquet|zip|tar|tgz|gz|bz2|xz))+$", "", path.name)
        return re.sub(r"[^\w-]+", "-", stem).strip("-") or "images"


def _tidy(images: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return a source's images with all optional columns, ordered by path, and the names of their classes in order."""
    if isinstance(images["label"].dtype, pd.CategoricalDtype):
        class_names = tuple(images["label"].cat.categories)
    else:
        labels = images["label"].dropna().unique().tolist()
        class_names = tuple(sorted(labels, key=int if all(map(str.isdecimal, labels)) else None))
    images = images.reindex(columns=list(_COLUMNS)).astype(_COLUMNS)
    return images.sort_values(["path", "label"], ignore_index=True), class_names


def _require_classes(images: pd.DataFrame, class_names: Sequence[str], report: Sequence[Finding], listed: Path) -> None:
    """Raise a UserError unless there are two classes, and a usable image of each."""
    if images.empty:
        raise UserError(f"No image can be used (first: {report[0].path}: {report[0].detail}): mend those in {listed}.")
    found = set(images["label"])
    for name in class_names:
        if name not in found:
            raise UserError(f"No image of the class '{name}' can be used: mend those in {listed}, or remove the class.")
    if len(class_names) < 2:
        raise UserError(
            f"There is only the class '{class_names[0]}', and a classifier needs two: give another data.path."
        )


def _tell(version: DatasetVersion, fresh: bool) -> None:
    counts = version.counts()
    labels = list(version.class_names) if len(version.class_names) <= _SHOWN_CLASSES else []
    rows = [(label, *(f"{counts[split][label]:,}" for split in SPLITS)) for label in labels]
    rows.append(("all", *(f"{sum(counts[split].values()):,}" for split in SPLITS)))
    print_table(f"{version.name}: {len(version.class_names)} classes", ("images", *SPLITS), rows)
    state = "new dataset version" if fresh else "nothing is new, dataset version"
    logger.info(f"{version.name}: {state} {version.digest} ({os.path.relpath(version.directory)})")
