"""Folders for stages to run in."""

from collections.abc import Callable
from pathlib import Path

import pytest
from workplace import Workplace


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def make_workplace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workplace]:
    return lambda name: Workplace(tmp_path_factory.mktemp(name))
