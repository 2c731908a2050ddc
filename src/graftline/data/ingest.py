"""Ingest labeled images: read a source, check and split its images, and write a dataset version."""

import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from graftline.data.checks import with_checks
from graftline.data.decisions import apply_decisions, find_decisions, read_decisions, warn_of_unmatched
from graftline.data.decoding import MAX_PIXELS, PLAIN, DecodeSettings, Decoding
from graftline.data.findings import FINDINGS_FILE, Finding, log_findings, write_findings
from graftline.data.listing import Listing
from graftline.data.manifest import digest_splits
from graftline.data.overview import log_classes, log_version, warn_of_other_images
from graftline.data.percentiles import with_range
from graftline.data.readers import missing_modules
from graftline.data.references import find_url
from graftline.data.remote import require_no_secret
from graftline.data.review import (
    drop_invalid,
    find_empty_splits,
    find_losses,
    find_moved,
    find_small_range,
    find_wrong_extensions,
    lacking_split,
    remove_leaks,
    remove_mixed_groups,
    require_classes,
    require_known_classes,
    require_none_invalid,
    require_usable,
    require_weights,
    resolve_conflicts,
    review_splits,
    undivided,
)
from graftline.data.rows import give_back_memory
from graftline.data.sources.source import Source
from graftline.data.split import Split
from graftline.data.version import DatasetVersion, newest_version
from graftline.data.version_writing import LOCK_FILE, TEST_SETS, write_version
from graftline.errors import UserError
from graftline.files import check_folder
from graftline.locks import Lock

logger = logging.getLogger(__name__)

CheckClasses = Callable[[Collection[str]], None]
"""Is given the names of the classes before images are read; it raises what is wrong with them."""

_LONGEST_NAME = 255  # bytes of a file's name, on all usual file systems
_ANY_RANGE = (0.0, 1.0)  # to tell whether files can be read, before it is measured


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
        decisions: table of an audit that a person has filled in: which images are relabeled or dropped, here and in the
            versions that follow; None: what was decided for the version that this one grows from.
        on_invalid: what happens with images that cannot be used.
        on_conflict: what happens with the same image under different labels.
        min_images_per_class: warn of classes with fewer.
        min_side_px: images with a shorter side are bad.
        max_pixels: images with more pixels are bad, and are not decoded; the version's models keep to the same limit.
        decode: which numbers of a file become which gray levels, in the version's models too.
        license: of the images, for the cards of models trained on them; None: unknown.
        workers: threads that check images; 0 for one per core.
        directory: versions are written to ``<directory>/<name>/<digest>``.
    """

    name: str | None
    path: str | None
    source: Source
    split: Split
    parent: str = "newest"
    decisions: str | None = None
    on_invalid: Literal["leave_out", "fail"] = "leave_out"
    on_conflict: Literal["exclude", "keep"] = "exclude"
    min_images_per_class: int = 10
    min_side_px: int = 8
    max_pixels: int = MAX_PIXELS
    decode: DecodeSettings = PLAIN.settings
    license: str | None = None
    workers: int = 0
    directory: str = "data"

    def __post_init__(self) -> None:
        require_no_secret(self.path or "", "Ingest.path")
        if self.name is None:
            return
        if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
            raise UserError(f"Ingest.name={self.name} is no name: use letters, digits, '_', '-' and '.'.")
        if (size := len(os.fsencode(self.name))) > _LONGEST_NAME:
            raise UserError(
                f"Ingest.name={self.name[:20]}… has {size} bytes, more than the {_LONGEST_NAME} that the name of "
                "a folder can have: give a shorter one."
            )

    def run(self, needed: Sequence[str] = (), check_classes: CheckClasses | None = None) -> IngestResult:
        """Read, check and split the images, and write the dataset version unless it is there already.

        Args:
            needed: splits without which the version would be of no use.
            check_classes: looks at the names of the classes before images are read.

        Raises:
            UserError: nothing to read, no share or no image for a split that is needed, fewer than two classes with
                usable images, a split whose weights are all 0, or bad images with on_invalid="fail".
        """
        with self._prepared(needed, check_classes) as listing:
            return self._write(listing)

    def look(self, needed: Sequence[str] = (), check_classes: CheckClasses | None = None) -> Listing:
        """Read, check and split the images as `run` does, without writing a version."""
        with self._prepared(needed, check_classes) as listing:
            (self._folder / FINDINGS_FILE).unlink(missing_ok=True)  # the listing has them
            return listing

    def write(
        self, seen: Listing, needed: Sequence[str] = (), check_classes: CheckClasses | None = None
    ) -> IngestResult:
        """Write the version of the images that `look` has seen; run anew if another process has written one since."""
        with self._alone():
            now, then = (None if one is None else one.summary for one in (self.find_parent(), seen.parent))
            if now == then:
                return self._write(seen)
        return self.run(needed, check_classes)

    @contextmanager
    def _prepared(self, needed: Sequence[str], check_classes: CheckClasses | None) -> Iterator[Listing]:
        """Read, check and split the images, and keep others from this data set during the block."""
        self._check_settings()
        listing = self.list_images()
        self.split.check(listing.images)
        self._require_splits(listing.images, needed)
        if check_classes is not None:
            check_classes(listing.class_names)
        with self._alone():
            parent = self.find_parent()
            give_back_memory()
            listing = self._check(listing, parent)  # one name for all three, as each takes hundreds of bytes per image
            give_back_memory()
            listing = self._divide(listing, parent, needed)
            give_back_memory()
            yield listing

    def run_as_test(
        self,
        class_names: Sequence[str],
        trained: Collection[str],
        split: str | None = None,
        decoding: Decoding = PLAIN,
    ) -> tuple[IngestResult, str]:
        """Read and check the images that a model is to be tested on, and write them as a dataset version.

        Of the data set that the model was trained on, these are its test images. Any other is a test split as a whole,
        in a version that no later one grows from.

        Args:
            class_names: the classes that the model knows.
            trained: digests of the version that the model was trained on, and of its test split.
            split: "train", "validation" or "test": these images only; "all": all images; None: as above.
            decoding: of the model. The images are decoded likewise, and may be as large, unless this ingest has
                settings or a limit of its own.

        Returns:
            What the ingest gave, and the split that has the images.

        Raises:
            UserError: nothing to read, a class that the model does not know, no usable image, or bad images with
                on_invalid="fail".
        """
        self._check_settings()
        as_model = self._decoding_as(decoding)
        listing = self.list_images()
        require_known_classes(listing.class_names, class_names)
        is_given = self.split.existing and split in set(listing.images["split"].dropna())
        if is_given:
            listing = replace(listing, images=listing.images[listing.images["split"] == split])
        with self._alone():
            parent, draft = self.find_parent(), None
            checked = as_model._check(listing, parent)
            if split is None:
                draft = self._divide_as_trained(checked, parent, trained)
            elif split != "all" and not is_given:
                draft = self._divide(checked, parent)
            taken = "test" if split in (None, "all") else str(split)
            return as_model._write(draft or undivided(checked, taken)), taken

    def _decoding_as(self, model: Decoding) -> "Ingest":
        """Return this ingest with a model's settings and limit, where it has none of its own."""
        is_measured = self.decode.to_measure and replace(model.settings, range=None) == self.decode
        return replace(
            self,
            decode=model.settings if is_measured or self.decode == PLAIN.settings else self.decode,
            max_pixels=model.max_pixels if self.max_pixels == MAX_PIXELS else self.max_pixels,
        )

    def _divide_as_trained(
        self, listing: Listing, parent: DatasetVersion | None, trained: Collection[str]
    ) -> Listing | None:
        """Divide images as for training; None where they are not of the data set that was trained on."""
        there = [directory for digest in trained if (directory := self._folder / digest).is_dir()]
        if self.parent != "newest" or any(
            DatasetVersion.load(one).has_any_of(listing.images["sha256"]) for one in there
        ):
            return self._divide(listing, parent)
        try:
            draft = self._divide(listing, parent)
        except UserError:  # no data set that could have been trained on
            return None
        is_tested = (draft.images["split"] == "test").any() and digest_splits(draft.images)["test"] in trained
        return draft if is_tested else None

    @property
    def _folder(self) -> Path:
        return Path(self.directory).absolute() / self.dataset_name()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from this data set during the block: a version grows from all that were written before."""
        wait = f"Waiting for another process that reads {self.dataset_name()}"
        with Lock(self._folder / LOCK_FILE, shared=False, on_wait=lambda: logger.info(wait), temporary=True):
            yield

    def _check_settings(self) -> None:
        """Make sure that what is named is there, settings of decoding go together, and nothing is missing."""
        check_folder(self._folder, "Ingest.directory")
        if self.parent != "newest":
            self.find_parent()  # it says what is wrong with it, as do decisions
        if self.decisions is not None:
            read_decisions(Path(self.decisions).expanduser())
        if self.decode.range is not None and self.decode.percentiles is not None:
            raise UserError("DecodeSettings.percentiles measures DecodeSettings.range: give one of the two.")
        if self.decode.bands is not None and (missing := missing_modules("tiff")):
            raise UserError(
                f"DecodeSettings.bands is set, but {missing[0]} is not installed, which reads the bands of TIFFs: "
                "pip install 'graftline[tiff]'."
            )

    def list_images(self) -> Listing:
        """List the images, without a look into them.

        Raises:
            UserError: there is nothing to read.
        """
        logger.info(f"Reading {self.dataset_name()}" + (f" from {self.path}" if self.path else ""))
        return Listing.of(self.source.read(None if self.path is None else Path(self.path)))

    def _require_splits(self, images: pd.DataFrame, needed: Sequence[str]) -> None:
        planned = self.split.planned(images)
        lacking = [split for split in needed if split not in planned]
        parent = self.find_parent() if lacking else None
        for split in lacking:
            if parent is None or split not in set(parent.history()["split"]):
                raise lacking_split(split, f": give Split.{split} a share above 0")

    def _divide(self, listing: Listing, parent: DatasetVersion | None, needed: Sequence[str] = ()) -> Listing:
        """Split images; those that can be in no split leave, and copies across splits too."""
        images, class_names = listing.images, listing.class_names
        require_classes(listing, self._folder / FINDINGS_FILE)
        history = None if parent is None else parent.history()
        if parent is not None and self.split.draws(images):
            self._say_what_is_inherited(parent)
        given, drawn, wanted = self.split.given(images), self.split.lacking(images), self.split.planned(images)
        images = self.split.assign(images, history)
        left_out = images[images["split"].isna()]
        images, mixed = remove_mixed_groups(images)
        images, leaks = remove_leaks(images)
        moved = [] if history is None else find_moved(images, history)
        review = review_splits(images, class_names, drawn, self.min_images_per_class)
        empty = find_empty_splits(images, wanted.union(needed), given, None if parent is None else parent.digest)
        for finding in empty:
            if finding.path in needed:
                raise lacking_split(finding.path, f", as {finding.detail}")
        findings = [*listing.findings, *mixed, *leaks, *moved, *review, *empty]
        return replace(listing, images=images, findings=findings, parent=parent, left_out=left_out, is_divided=True)

    def _write(self, listing: Listing) -> IngestResult:
        folder, divided = self._folder, listing.is_divided
        require_weights(listing.images, "test")  # no score can do without; a training need not use them
        decoding = self._decoding(listing.images, listing.parent)
        findings = [*listing.findings, *find_small_range(listing.images, decoding.settings.range)]
        if self.parent == "newest" and listing.parent is not None:
            warn_of_other_images(listing.images["sha256"], listing.parent)
        version, is_new = write_version(
            folder if divided else folder / TEST_SETS,
            self.dataset_name(),
            listing.images,
            listing.class_names,
            parent=listing.parent,
            left_out=listing.left_out,
            split_settings=self.split.settings if divided else None,
            decoding=decoding,
            decisions=listing.decisions,
            further=listing.further.loc[listing.images.index],
        )
        write_findings(findings, version.directory / FINDINGS_FILE)
        (folder / FINDINGS_FILE).unlink(missing_ok=True)  # of an ingest that failed
        log_findings(findings, version.directory / FINDINGS_FILE)
        log_version(version, is_new)
        if is_new and listing.parent is not None:
            log_classes(version, listing.parent)
        return IngestResult(version, findings, is_new)

    def find_parent(self) -> DatasetVersion | None:
        """Return the version whose images keep their splits; None where there is none."""
        if self.parent == "none":
            return None
        if self.parent == "newest":
            return newest_version(self._folder)
        directory = Path(self.parent).expanduser().absolute()
        if not directory.is_dir():
            raise UserError(f"Ingest.parent={self.parent} is no version: give newest, none or a version's directory.")
        return DatasetVersion.load(directory)

    def _check(self, listing: Listing, parent: DatasetVersion | None) -> Listing:
        """Look at each image; keep those that can be used, and what was found."""
        images = listing.images
        before = None if parent is None else parent.decisions()
        decisions = find_decisions(before, self.decisions, listing.class_names)
        settings = replace(self.decode, jpeg_side_px=None)  # each is looked at as a whole
        if settings.to_measure:
            settings = replace(settings, range=_ANY_RANGE)
        decoding = Decoding(settings, self.max_pixels)
        checked = with_checks(images, decoding, self.workers, self._folder / "checked.parquet")
        images, invalid = drop_invalid(checked, self.min_side_px)
        losses = find_losses(checked, images)
        del checked
        findings = [*invalid, *losses, *find_wrong_extensions(images)]
        warn_of_unmatched(self.decisions, before, images, listing.class_names)
        images, decided = apply_decisions(images, decisions, listing.class_names)
        findings += decided
        images, conflicts = resolve_conflicts(images, keep=self.on_conflict == "keep")
        findings += conflicts
        file = self._folder / FINDINGS_FILE
        write_findings(findings, file)  # there may be no version that it can belong to
        if self.on_invalid == "fail":
            require_none_invalid(invalid, losses, file)
        require_usable(images, findings, file)
        images = images.drop(columns=["flaw", "reason"])
        return replace(listing, images=images, findings=findings, decisions=decisions)

    def _decoding(self, images: pd.DataFrame, parent: DatasetVersion | None) -> Decoding:
        """Return how the version's files become pixels."""
        extras = tuple(sorted(set(images["extra"]) - {""}))
        before = None if parent is None else parent.decoding.settings
        return with_range(Decoding(self.decode, self.max_pixels, extras), images, before, self.workers)

    def _say_what_is_inherited(self, parent: DatasetVersion) -> None:
        if parent.origin["split"] not in (None, self.split.settings):
            logger.info(
                f"Images of version {parent.digest} keep their splits: other shares or another seed are for new images "
                "only (Ingest.parent='none' draws anew)."
            )

    def dataset_name(self) -> str:
        """Return the name of the data set, fit for folders and for MLflow's registry."""
        if self.name is not None:
            return self.name
        given = self.path or type(self.source).__name__.lower()
        path = Path(given if find_url(given) is None else given.partition("?")[0]).expanduser().absolute()
        stem = path.name if path.is_dir() else re.sub(r"(\.(csv|tsv|parquet|zip|tar|tgz|gz|bz2|xz))+$", "", path.name)
        return re.sub(r"[^\w-]+", "-", stem).strip("-") or "images"
