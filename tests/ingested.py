"""A folder, table or archive as a dataset version, and what was found in it."""

import os
from pathlib import Path
from typing import Any

from graftline.data.ingest import Ingest, IngestResult
from graftline.data.sources.folder import Folder
from graftline.data.sources.source import Source
from graftline.data.split import Split


def ingest(tmp_path: Path, path: Path, source: Source | None = None, **settings: Any) -> IngestResult:
    settings = {"split": Split(), "min_images_per_class": 1, **settings}
    directory = str(tmp_path / "versions")
    return Ingest(name="set", path=str(path), source=source or Folder(), directory=directory, **settings).run()


def kinds(result: IngestResult, root: Path) -> dict[str, str]:
    """Map each finding's path, relative to ``root``, to its kind."""
    return {os.path.relpath(finding.path, root): finding.kind for finding in result.findings}


def paths(result: IngestResult, root: Path) -> dict[str, str]:
    """Map each image's path, relative to ``root``, to its split."""
    table = result.version.table()
    return {os.path.relpath(path, root): split for path, split in zip(table["path"], table["split"], strict=True)}
