"""Places for downloaded weights that are empty, and a hub that is not there."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache folder, empty."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def torch_checkpoints(tmp_path: Path) -> Iterator[Path]:
    """The folder of weights that torch downloaded by their URL, empty."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "torch")
    folder = tmp_path / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    yield folder
    torch.hub.set_dir(before)


@pytest.fixture
def offline(hub_cache: Path, torch_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing downloaded, and nobody listens where the hub is said to be."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
