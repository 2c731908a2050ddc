"""Ingest labeled images: read a source, check and split its images, and write a dataset version."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from graftline.console import format_table
from graftline.data.checks import check_images
from graftline.data.decoding import MAX_PIXELS, PLAIN, DecodeSettings, Decoding
from graftline.data.findings import FINDINGS_FILE, Finding, log_findings, write_findings
from graftline.data.percentiles import measure_range
from graftline.data.readers import missing_modules
from graftline.data.review import (
    drop_invalid,
    find_moved,
    find_small_range,
    find_wrong_extensions,
    remove_leaks,
    remove_mixed_groups,
    resolve_conflicts,
    review_splits,
)
from graftline.data.sources.source import Source
from graftline.data.split import Split
from graftline.data.version import SPLITS, DatasetVersion, newest_version, write_version
from graftline.errors import UserError

logger = logging.getLogger(__name__)

_COLUMNS = {"path": "str", "label": "str", "split": "str", "group": "str", "weight": "float32", "stratum": "str"}
_ANY_RANGE = (0.0, 1.0)  # to tell whether files can be read, before it is measured
_SHOWN_CLASSES = 20  # a longer table is no overview any more


@dataclass(frozen=True)
class IngestResult:
    """Hold what an ingest gave.

    Attributes:
        version: the dataset version.
        findings: what was found, image by image; also in the version's ``findings.json``.
        is_new: whether the version is new; False if this very version was there already.
    """

    version: DatasetVersion
    findings: list[Finding]
    is_new: bool


@dataclass(frozen=True)
class Ingest:
    """Read, check and split a data set (Hydra target of conf/data).

    Attributes:
        name: the data set's name; None for that of ``path``.
        path: where the images are; None for a source that knows.
        source: what reads it.
        split: how it is divided.
        parent: the version whose images keep their splits: "newest" of this name, "none" to draw all of them anew, or a
            version's directory.
        on_invalid: what happens with images that cannot be used.
        on_conflict: what happens with the same image under different labels.
        min_images_per_class: warn of classes with fewer.
        min_side_px: images with a shorter side are bad.
        max_pixels: images with more pixels are bad, and are not decoded; the version's models keep to the same limit.
        decode: which numbers of a file become which gray levels, in the version's models too.
        workers: threads that check images; 0 for one per core.
        directory: versions are written to ``<directory>/<name>/<digest>``.
    """

    name: str | None
    path: str | None
    source: Source
    split: Split
    parent: str = "newest"
    on_invalid: Literal["leave_out", "fail"] = "leave_out"
    on_conflict: Literal["exclude", "keep"] = "exclude"
    min_images_per_class: int = 10
    min_side_px: int = 8
    max_pixels: int = MAX_PIXELS
    decode: DecodeSettings = PLAIN.settings
    workers: int = 0
    directory: str = "data"

    def run(self) -> IngestResult:
        """Read, check and split the images, and write the dataset version unless it is there already.

        Raises:
            UserError: nothing to read, fewer than two classes with usable images, or bad images with on_invalid="fail".
        """
        if self.decode.range is not None and self.decode.percentiles is not None:
            raise UserError("DecodeSettings.percentiles measures DecodeSettings.range: give one of the two.")
        if self.decode.bands is not None and (missing := missing_modules("tiff")):
            raise UserError(
                f"DecodeSettings.bands is set, but {missing[0]} is not installed, which reads the bands of TIFFs: "
                "pip install 'graftline[tiff]'."
            )
        name = self.dataset_name()
        folder = Path(self.directory).absolute() / name
        parent = self._find_parent(folder)
        history = None if parent is None else parent.history()
        logger.info(f"Reading {name}" + (f" from {self.path}" if self.path else ""))
        images, class_names = _tidy(self.source.read(None if self.path is None else Path(self.path)))
        images, findings = self._check(images, class_names, folder)
        if parent is not None and self.split.draws(images):
            self._say_what_is_inherited(parent)
        drawn = self.split.lacking(images)
        images = self.split.assign(images, history)
        left_out = images[images["split"].isna()]
        images, mixed = remove_mixed_groups(images)
        images, leaks = remove_leaks(images)
        findings += mixed + leaks + ([] if history is None else find_moved(images, history))
        findings += review_splits(images, class_names, drawn, self.min_images_per_class)
        decoding = self._decoding(images, parent)
        findings += find_small_range(images, decoding.settings.range)
        version, is_new = write_version(
            folder,
            name,
            images,
            class_names,
            parent=parent,
            left_out=left_out,
            split_settings=self.split.settings,
            decoding=decoding,
        )
        write_findings(findings, version.directory / FINDINGS_FILE)
        (folder / FINDINGS_FILE).unlink(missing_ok=True)  # of an ingest that failed
        log_findings(findings, version.directory / FINDINGS_FILE)
        _log_version(version, is_new)
        return IngestResult(version, findings, is_new)

    def _find_parent(self, folder: Path) -> DatasetVersion | None:
        if self.parent == "none":
            return None
        if self.parent == "newest":
            return newest_version(folder)
        directory = Path(self.parent).expanduser().absolute()
        if not directory.is_dir():
            raise UserError(f"Ingest.parent={self.parent} is no version: give newest, none or a version's directory.")
        return DatasetVersion.load(directory)

    def _check(
        self, images: pd.DataFrame, class_names: Sequence[str], folder: Path
    ) -> tuple[pd.DataFrame, list[Finding]]:
        """Look at each image; return those that can be used, and what was found."""
        settings = replace(self.decode, jpeg_side_px=None)  # each is looked at as a whole
        if settings.to_measure:
            settings = replace(settings, range=_ANY_RANGE)
        decoding = Decoding(settings, self.max_pixels)
        checks = check_images(images["path"].unique().tolist(), decoding, self.workers, folder / "checked.parquet")
        images, findings = drop_invalid(images.merge(checks, on="path", how="left"), self.min_side_px)
        invalid = len(findings)
        findings += find_wrong_extensions(images)
        images, conflicts = resolve_conflicts(images, keep=self.on_conflict == "keep")
        findings += conflicts
        file = folder / FINDINGS_FILE
        write_findings(findings, file)  # there may be no version that it can belong to
        if invalid and self.on_invalid == "fail":
            first = f"{findings[0].path}: {findings[0].detail}"
            raise UserError(
                f"{invalid:,} images cannot be used (first: {first}): mend or remove those listed in {file}, "
                "or leave them out with Ingest.on_invalid='leave_out'."
            )
        _require_classes(images, class_names, findings, file)
        return images, findings

    def _decoding(self, images: pd.DataFrame, parent: DatasetVersion | None) -> Decoding:
        """Return how the version's files become pixels; a range is measured once, and inherited from then on."""
        extras = tuple(sorted(set(images["extra"]) - {""}))
        decoding = Decoding(self.decode, self.max_pixels, extras)
        if not self.decode.to_measure:
            return decoding
        before = None if parent is None else parent.decoding.settings
        if before is not None and replace(before, range=None) == self.decode:
            return replace(decoding, settings=before)
        training = images[images["split"] == "train"].sort_values("sha256")
        limits = measure_range(training["path"].tolist(), decoding, self.workers)
        logger.info(f"DecodeSettings.range is {limits[0]:,.6g} to {limits[1]:,.6g}, measured on training images.")
        return replace(decoding, settings=replace(self.decode, range=limits))

    def _say_what_is_inherited(self, parent: DatasetVersion) -> None:
        if parent.origin["split"] not in (None, self.split.settings):
            logger.info(
                f"Images of version {parent.digest} keep their splits: other shares or another seed are for new images "
                "only (Ingest.parent='none' draws anew)."
            )

    def dataset_name(self) -> str:
        """Return the name of the data set, fit for folders and for MLflow's registry."""
        if self.name is not None:
            if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
                raise UserError(f"Ingest.name={self.name} is no name: use letters, digits, '_', '-' and '.'.")
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


def _require_classes(images: pd.DataFrame, class_names: Sequence[str], findings: Sequence[Finding], file: Path) -> None:
    """Raise a UserError unless there are two classes, and a usable image of each."""
    if images.empty:
        raise UserError(
            f"No image can be used (first: {findings[0].path}: {findings[0].detail}): mend those in {file}."
        )
    found = set(images["label"])
    for name in class_names:
        if name not in found:
            raise UserError(f"No image of the class '{name}' can be used: mend those in {file}, or remove the class.")
    if len(class_names) < 2:
        raise UserError(
            f"There is only the class '{class_names[0]}', and a classifier needs two: give another Ingest.path."
        )


def _log_version(version: DatasetVersion, is_new: bool) -> None:
    """Log the images by class, what has changed since the parent, and the version."""
    counts = version.counts()
    labels = list(version.class_names) if len(version.class_names) <= _SHOWN_CLASSES else []
    rows = [(label, *(f"{counts[split][label]:,}" for split in SPLITS)) for label in labels]
    rows.append(("all", *(f"{sum(counts[split].values()):,}" for split in SPLITS)))
    title = f"{version.name}: {len(version.class_names)} classes"
    logger.info(format_table(title, ("images", *SPLITS), rows))
    changes = version.origin["changes"]
    if is_new and changes is not None:
        rows = [(kind, *(f"{changes[kind].get(split, 0):,}" for split in SPLITS)) for kind in changes]
        logger.info(format_table(f"since version {version.parent}", ("images", *SPLITS), rows))
    state = "new dataset version" if is_new else "nothing is new, dataset version"
    logger.info(f"{version.name}: {state} {version.digest} ({os.path.relpath(version.directory)})")
