"""Ingest: source → checks → split (inherited from the parent) → dataset version."""

from dataclasses import dataclass
from pathlib import Path

from graftline.data.ingest import Ingest
from graftline.pipeline.dataset_versions.parent import with_parent
from graftline.pipeline.stage import StageResult
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True)
class IngestStage:
    """The stage ``ingest`` (Hydra target of conf/ingest.yaml).

    Attributes:
        data: what reads, checks and splits the images.
        tracking: where ``data.parent`` is looked up if it is a run or a model.
    """

    data: Ingest
    tracking: Tracking

    def run(self, directory: Path) -> StageResult:  # noqa: ARG002 - versions lie in data/, where every run finds them
        """Read, check and split the images, and name what came of it."""
        result = with_parent(self.data, self.tracking).run()
        version = result.version
        images = {split: sum(classes.values()) for split, classes in version.counts().items()}
        return StageResult(
            facts={
                "dataset_digest": version.digest,
                "dataset_directory": str(version.directory),
                "parent_digest": version.parent,
                "test_digest": version.test_digest,
                "is_new": result.is_new,
                "images": images,
                "changes": version.origin["changes"],
            },
            table=[
                ("dataset version", f"{version.name} {version.digest}" + ("" if result.is_new else " (nothing new)")),
                ("images", ", ".join(f"{count:,} {split}" for split, count in images.items())),
                ("findings", f"{len(result.findings):,}"),
                ("manifest", str(version.directory)),
            ],
        )
