"""A small dataset version that the fits of this room share."""

from pathlib import Path

import pytest

from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion


@pytest.fixture(scope="session")
def version(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """The colored squares: 36 for training, 12 for validation, 12 for the test."""
    split = Split(train=0.6, validation=0.2, test=0.2, seed=0, existing=True)
    ingest = Ingest(None, str(color_folder), Folder(), split, directory=str(tmp_path_factory.mktemp("data")))
    return ingest.run().version
