"""Ingest: source → checks → split → dataset version."""

from dataclasses import dataclass
from pathlib import Path

from graftline.data.ingest import Ingest
from pipeline.stage import StageResult


@dataclass(frozen=True)
class IngestStage:
    """The stage ``ingest`` (Hydra target of conf/ingest.yaml)."""

    data: Ingest

    def run(self, directory: Path) -> StageResult:  # noqa: ARG002 - versions lie in data/, where every run finds them
        """Read, check and split the images, and name what came of it."""
        result = self.data.run()
        version = result.version
        images = {split: sum(classes.values()) for split, classes in version.counts().items()}
        return StageResult(
            facts={"dataset_digest": version.digest, "dataset_directory": str(version.directory), "images": images},
            table=[
                ("dataset version", f"{version.name} {version.digest}" + ("" if result.fresh else " (nothing new)")),
                ("images", ", ".join(f"{count:,} {split}" for split, count in images.items())),
                ("findings", f"{len(result.report):,}"),
                ("manifest", str(version.directory)),
            ],
        )
