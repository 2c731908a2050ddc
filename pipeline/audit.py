"""Audit: activations → label errors, near duplicates, odd images → a sheet to look at, a table of decisions."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from graftline.backbones.backbone import Backbone
from graftline.console import counted, print_table, say
from graftline.data.decode import decode_rgb
from graftline.data.image_facts import ImageFacts, find_facts
from graftline.data.ingest import Ingest
from graftline.data.manifest import SPLITS
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.audit import Audit, audit
from graftline.evaluation.label_errors import require_cleanlab
from graftline.evaluation.learning_curve import Activated
from graftline.evaluation.near_duplicates import SAMPLE, Likeness, measure_likeness
from graftline.execution import Accelerator, Execution
from graftline.features.cache import Features
from graftline.files import atomic_file
from graftline.pipeline.dataset_versions.head_activations import activate, cut_below_head
from graftline.pipeline.dataset_versions.parent import with_parent
from graftline.pipeline.runs.stage_summaries import DECISIONS_FILE, SHEET_FILE
from graftline.pipeline.stage import StageResult
from graftline.ray_cluster import NoCluster, RayCluster
from graftline.report.audit_sheet import write_sheet
from graftline.tracking.tracking import Tracking
from graftline.training.head_trunk import HeadTrunk

MOST_TOLD = 10  # probable label errors in the terminal


@dataclass(frozen=True, kw_only=True)
class AuditResult(StageResult):
    """What the stage ``audit`` found.

    Attributes:
        audit: of each image.
        decisions: the table to fill in, a file.
        sheet: the page to look at, a file.
    """

    audit: Audit
    decisions: Path
    sheet: Path


@dataclass(frozen=True)
class AuditStage:
    """The stage ``audit`` (Hydra target of conf/audit.yaml).

    Attributes:
        data: the images.
        backbone: the network by whose activations the images are compared and their labels checked.
        features: where the activations are cached.
        tracking: where ``data.parent`` is looked up if it is a run or a model.
        splits: that are audited: one or more of train, validation and test.
        accelerator: where the activations are computed.
        cluster: over which the frozen pass is spread.
    """

    data: Ingest
    backbone: Backbone
    features: Features
    tracking: Tracking
    splits: Sequence[str] = field(default_factory=lambda: list(SPLITS))
    accelerator: Accelerator = "auto"
    cluster: NoCluster | RayCluster = NoCluster()  # noqa: RUF009 - immutable

    def __post_init__(self) -> None:
        if not self.splits or not set(self.splits) <= set(SPLITS):
            raise UserError(f"AuditStage.splits is {list(self.splits)}: give one or more of {', '.join(SPLITS)}.")

    def run(self, directory: Path) -> AuditResult:
        """Audit the images, and write the sheet and the table."""
        require_cleanlab()
        self.backbone.check()
        self.cluster.check()
        self.features.check()
        execution = Execution.local(self.accelerator)
        version = with_parent(self.data, self.tracking).run().version
        splits = [split for split in self.splits if any(version.counts()[split].values())]
        if not splits:
            raise UserError(f"There are no images in {' and '.join(self.splits)} of {version.name}: give other splits.")
        trunk = cut_below_head(self.backbone, version, self.features, execution, self.cluster)
        images = _rows(version, splits)
        parts = [activate(trunk, split) for split in splits]
        facts, likeness = self._look(images, version), _measure_likeness(trunk, images, version)
        found = audit(
            images,
            np.concatenate([part.activations for part in parts]),
            np.concatenate([part.labels for part in parts]),
            version.class_names,
            _groups(parts),
            facts,
            likeness,
        )
        table = _write_table(found.decisions(version.decisions()), directory / DECISIONS_FILE)
        _print(found)
        sheet = write_sheet(found, f"Audit of {version.name}", table, version.decoding, directory / SHEET_FILE)
        return _summarize(found, version, table, sheet)

    def _look(self, images: pd.DataFrame, version: DatasetVersion) -> ImageFacts:
        with counted("Looking at images", len(images)) as advance:
            return find_facts(images["path"].tolist(), version.decoding, self.data.workers, advance)


def _rows(version: DatasetVersion, splits: Sequence[str]) -> pd.DataFrame:
    """Return a row per image in the order of the splits, and in them of the version."""
    table = version.table()
    parts = [table[table["split"] == split] for split in splits]
    return pd.concat(parts, ignore_index=True)[["sha256", "path", "label", "split"]]


def _groups(parts: Sequence[Activated]) -> list[str]:
    return [group for part in parts for group in part.groups]


def _measure_likeness(trunk: HeadTrunk, images: pd.DataFrame, version: DatasetVersion) -> Likeness:
    """Find out how alike copies of some images are, which ones their contents decide."""
    sample = images.sort_values("sha256")["path"].head(SAMPLE)
    return measure_likeness([decode_rgb(path, version.decoding) for path in sample], trunk.embed)


def _write_table(table: pd.DataFrame, file: Path) -> Path:
    with atomic_file(file) as temporary:
        table.to_csv(temporary, index=False)
    return file


def _print(found: Audit) -> None:
    """Print the likeliest label errors, and how many pairs and odd images there are."""
    rows = found.likely_errors[:MOST_TOLD].tolist()
    cells = [
        (
            Path(found.images["path"].iloc[row]).name,
            found.images["split"].iloc[row],
            found.images["label"].iloc[row],
            found.class_names[int(found.errors.suggested[row])],
            f"{found.errors.quality[row]:.3f}",
        )
        for row in rows
    ]
    if cells:
        title = f"{len(found.likely_errors):,} labels that are probably wrong, the likeliest"
        print_table(title, ("image", "split", "label", "suggested", "probability\nof the label"), cells)
    else:
        say("No label is probably wrong.")
    counts = found.odd["name"].value_counts()
    print_table(
        "Other findings",
        ("what", "number"),
        [
            ("almost the same, pairs", f"{len(found.pairs):,}"),
            ("of these in two splits", f"{int(found.across.sum()):,}"),
            *((str(name), f"{number:,}") for name, number in counts.items()),
        ],
    )


def _summarize(found: Audit, version: DatasetVersion, table: Path, sheet: Path) -> AuditResult:
    return AuditResult(
        audit=found,
        decisions=table,
        sheet=sheet,
        facts={
            "dataset_digest": version.digest,
            "images": len(found.images),
            "label_errors": len(found.likely_errors),
            "near_duplicates": len(found.pairs),
            "near_duplicates_across_splits": int(found.across.sum()),
            "odd_images": found.odd["name"].value_counts().to_dict(),
        },
        table=[
            ("probably wrong labels", f"{len(found.likely_errors):,} of {len(found.images):,}"),
            ("near duplicates", f"{len(found.pairs):,} pairs"),
            ("sheet to look at", os.path.relpath(sheet)),
            ("table to fill in", os.path.relpath(table)),
        ],
    )
