"""Networks with weights on this machine."""

from pathlib import Path

import pytest
from tiny_weights import write_weights


@pytest.fixture(scope="session")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights directory with the tiny networks."""
    directory = tmp_path_factory.mktemp("weights")
    write_weights(directory)
    return directory
